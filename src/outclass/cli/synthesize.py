"""``outclass synthesize``: pictures of what is none of the classes, to learn from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from outclass.cli import options

PICTURES = "Pictures"
FAILED = 3

PIPELINE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def synthesize(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and their manifest.")],
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Outliers wanted.", rich_help_panel=PICTURES)] = 100,
    pipeline: Annotated[
        str,
        typer.Option(
            help="Text-to-image pipeline of diffusers: a Hugging Face id or a folder, safetensors only.",
            rich_help_panel=PICTURES,
        ),
    ] = PIPELINE,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps; default: the pipeline's own.", rich_help_panel=PICTURES),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How closely to follow the prompt; turbo pipelines want 0. Default: the pipeline's own.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side in pixels; default: the pipeline's own.", rich_help_panel=PICTURES),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures.", rich_help_panel=PICTURES)] = 0,
    encoder: options.EncoderName = "lite",
    device: options.Device = "auto",
    threads: options.Threads = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw pictures that are none of your classes, for `outclass fit --outliers`.

    Prompts name things that WordNet files next to a class ("a photo of a lion" for cat) and mixes of two classes. A
    picture that your guard takes for one of the classes is set aside and does not count. manifest.jsonl lists every
    picture with its prompt, seed and verdict. The same command given again goes on where it was cut off.

    [bold]Examples[/]

      outclass synthesize --classes cat,dog,car -o drawn

      outclass synthesize --guard pets.guard -o drawn --pipeline stabilityai/sd-turbo --steps 1 --guidance 0

      outclass fit my_pets --detector outliers --outliers drawn/outliers -o pets.guard
    """
    from outclass.cli.guards import make_guard
    from outclass.cli.show import say
    from outclass.images.decode import MAX_PIXELS
    from outclass.tune.diffusion import Diffusion
    from outclass.tune.generate import Painter, generate

    guard = make_guard(classes, guard_file, encoder, None, None, None, None, device, threads, None, MAX_PIXELS)

    def painter() -> Painter:
        return Diffusion(pipeline, steps=steps, guidance=guidance, size=size, device=device)

    made = generate(guard, out, painter, count, seed, progress=sys.stderr.isatty() and not quiet)
    if not quiet:
        say(made.describe())
        say(f"learn from them: outclass fit ID_FOLDER --detector outliers --outliers {made.folder} -o my.guard")
    if made.n_kept < count:
        raise typer.Exit(FAILED)
