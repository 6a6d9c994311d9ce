"""``outclass tune``: class vectors learned from a few images."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass.cli import options
from outclass.errors import UsageError
from outclass.images.decode import MAX_PIXELS

if TYPE_CHECKING:
    from outclass.words.tuned import TunedPrompts

TUNING = "Tuning"


def tune(
    known: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Images of your classes (ID); its sub-folders name the classes.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: NAME.prompts.", rich_help_panel="Output")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="coop, or locoop: background is also taught to look like no class.",
            rich_help_panel=TUNING,
        ),
    ] = "coop",
    classes: options.Classes = None,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            "-e",
            help="A torch encoder: a Hugging Face id or the folder of a checkpoint.",
            rich_help_panel=options.MODEL,
        ),
    ] = "openai/clip-vit-base-patch32",
    shots: Annotated[int, typer.Option(min=1, help="Images a class, drawn by --seed.", rich_help_panel=TUNING)] = 16,
    context: Annotated[
        str,
        typer.Option(
            help="How many vectors before a name, started by chance; or words to start from, such as 'a photo of a'.",
            rich_help_panel=TUNING,
        ),
    ] = "16",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.", rich_help_panel=TUNING)] = 50,
    lr: Annotated[
        float, typer.Option(help="Learning rate; 1e-5 in the first epoch, then a cosine to 0.", rich_help_panel=TUNING)
    ] = 2e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.", rich_help_panel=TUNING)] = 32,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the images drawn, the start and the order.", rich_help_panel=TUNING)
    ] = 0,
    local_weight: Annotated[
        float, typer.Option(min=0, help="Of locoop's term, lambda; 0 = coop.", rich_help_panel=TUNING)
    ] = 0.25,
    top_k: Annotated[
        str,
        typer.Option(
            help="Of locoop: a place with its image's class among so many best counts as showing it; auto = a fifth of "
            "the classes.",
            rich_help_panel=TUNING,
        ),
    ] = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Learn the prompt around your class names from a few images of each: a class set for every detector.

    The encoder stays as it is, and every image is encoded once, so a CPU will do for a few classes. Interrupted, the
    same command goes on where it stopped (FILE.part).

    [bold]Examples[/]

      outclass tune my_pets -o pets.prompts

      outclass tune my_pets -o pets.prompts --method locoop --context 'a photo of a' --encoder ViT-B/16

      outclass scan photos --classes pets.prompts
    """
    from outclass.cli.show import say
    from outclass.tune.prompts import tune_prompts
    from outclass.tune.training import Settings

    if top_k != "auto" and not top_k.isdecimal():
        raise UsageError(f"--top-k is a whole number or auto, got {top_k!r}")
    settings = Settings(
        method=method,
        shots=shots,
        context=_context(context),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        local_weight=local_weight,
        top_k=None if top_k == "auto" else int(top_k),
    )
    made = tune_prompts(
        known, out, settings, classes=classes, encoder=encoder, device=device, threads=threads, max_pixels=max_pixels,
        progress=sys.stderr.isatty() and not quiet,
    )  # fmt: skip
    if not quiet:
        say(_describe(made))
        say(f"wrote {out}; use it: outclass scan PHOTOS --classes {out}")


def _context(text: str) -> int | str:
    """``--context`` as a count, or as words."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if not any(letter.isalpha() for letter in re.sub(r"\de[-+]?\d+", "", text)):
        raise UsageError(
            "--context is how many vectors, a whole number such as 16, or words to start from, such as 'a photo of a'; "
            f"got {text!r}"
        )
    return text


def _describe(made: TunedPrompts) -> str:
    about = made.about
    before, after = about["accuracy"]["template"], about["accuracy"]["tuned"]
    return (
        f"Tuned {len(made.context)} vectors of context on {about['images']:,} images of {len(made.classes):,} classes; "
        f"loss {about['losses'][0]:.4f} in the first epoch, {about['losses'][-1]:.4f} in the last.\n"
        f"Accuracy on these same images: {before:.1%} with 'a photo of a {{}}', {after:.1%} tuned. What it does to "
        "other images, `outclass eval` says."
    )
