"""``outclass index`` and ``outclass search``: encode images once, then look through them."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass import __version__, atomic
from outclass.cli import options
from outclass.cli.ray import RAY, STARTING, RayActors, RayGpus, laid_out
from outclass.cli.scan import OUT, SOME_FAILED
from outclass.cli.stopping import stopping
from outclass.errors import ImageError, UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.images.sources import FPS, printable

if TYPE_CHECKING:
    from outclass.index import Indexed
    from outclass.records import Rows

MakerName = Annotated[
    str | None,
    typer.Option(
        "--encoder", "-e",
        help="As for [bold]scan[/]. Default: the one that made the index; for a new index lite (bundled).",
        rich_help_panel=options.MODEL,
    ),
]  # fmt: skip

IndexedByRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="local|ADDRESS",
        help="Read and encode in many processes; the index, written by this one alone, is the same. local starts them "
        "on this machine; auto or HOST:PORT is a cluster that this machine belongs to, with the same outclass on every "
        "node, which finds the images at the same place.",
        rich_help_panel=RAY,
    ),
]


def index(
    photos: Annotated[str, typer.Argument(help="What [bold]outclass scan[/] takes: a folder, an archive ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index, a folder NAME.lance.", rich_help_panel=OUT)],
    fps: Annotated[float, typer.Option(help="Frames a second that are taken from a video.")] = FPS,
    encoder: MakerName = None,
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Read every file, also where size and time of change are as they were."),
    ] = False,
    patches: Annotated[
        bool,
        typer.Option(
            "--patches",
            help="Keep local vectors too, for detectors that need them (gl_mcm): 41 kB an image with lite. When the "
            "index is made; afterwards it goes on by itself.",
        ),
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails", help="Keep small pictures too, for pages when the files are gone: about 5 kB."),
    ] = False,
    allow_failed: Annotated[
        int, typer.Option(min=0, help="Exit with 0 although this many images could not be read.", rich_help_panel=OUT)
    ] = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    ray: IndexedByRay = None,
    ray_actors: RayActors = None,
    ray_gpus: RayGpus = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Encode images once into a table of vectors that is scanned and searched without opening an image again.

    Run it again and only new and changed files are encoded; files that are gone are marked. Stop it or kill it, and
    the same command goes on where it was. Exit code: 0 all read, 3 some could not be, 2 wrong usage, 1 crash, 130
    stopped by Ctrl-C.

    [bold]Examples[/]

      outclass index photos -o photos.lance

      outclass index photos -o photos.lance --patches --thumbnails

      outclass index "shards/*.tar" -o photos.lance --ray auto

      outclass scan photos.lance --classes cat,dog,car

      outclass search photos.lance bird
    """
    from outclass.cli.show import say
    from outclass.index import Index, build
    from outclass.index.table import is_index

    clock = time.perf_counter()
    name = encoder or (Index(out).encoder if is_index(out) and (out / "_versions").is_dir() else "lite")
    layout = laid_out(ray, ray_actors, ray_gpus, device, threads, batch_size, {})
    progress = sys.stderr.isatty() and not quiet
    machine: dict[str, Any] = {"device": device, "threads": threads, "batch_size": batch_size}
    wanted: dict[str, Any] = {
        "max_pixels": max_pixels,
        "fps": fps,
        "rehash": rehash,
        "patches": patches,
        "thumbnails": thumbnails,
    }
    with stopping(lambda: "what was encoded is kept; run the same command again to go on"):
        if layout:
            from outclass.distributed import index_to

            if progress:
                say(STARTING, style="dim")
            done = index_to(photos, out, name, layout, progress=progress, **wanted)
        else:
            done = build(photos, out, name, progress=progress, **machine, **wanted)
    if not quiet:
        say(_line(done, out, time.perf_counter() - clock))
        if done.failed:
            say(f"could not be read: {_unread(out)}", style="yellow")
    if done.failed > allow_failed:
        raise typer.Exit(SOME_FAILED)


def search(
    photos: Annotated[str, typer.Argument(help="An index, made by [bold]outclass index[/].")],
    query: Annotated[str, typer.Argument(help="Words, or an image file.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many images.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="SQL condition on the columns: \"width >= 640 AND id LIKE 'holiday/%'\"."),
    ] = None,
    guard_file: Annotated[
        Path | None, typer.Option("--guard", "-g", help="A saved guard, which judges what is found.")
    ] = None,
    ood_only: Annotated[bool, typer.Option("--ood-only", help="Only what the guard calls OOD.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every row, also in an index with more than 200,000.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for search.html, a contact sheet.", rich_help_panel=OUT),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUT)] = False,
    thumbnails: Annotated[bool, typer.Option(help="Pictures in search.html.", rich_help_panel=OUT)] = True,
    encoder: MakerName = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Find the images of an index that are nearest to words or to an image.

    [bold]Examples[/]

      outclass search photos.lance bird

      outclass search photos.lance holiday.jpg --k 20 -o found

      outclass search photos.lance dog --where "width >= 640" --json

      outclass search photos.lance animal --ood-only --guard my.guard
    """
    from outclass.cli.show import limit_line, say
    from outclass.encoders.base import load_encoder
    from outclass.guard import Guard
    from outclass.index import Index
    from outclass.search import SENTENCES, beyond_nouns, is_image_file
    from outclass.search import search as find

    if ood_only and guard_file is None:
        raise UsageError("--ood-only needs --guard FILE, which says what is OOD; outclass calibrate makes one")
    index = Index(photos)
    made = load_encoder(encoder or index.encoder, device, threads)
    guard = Guard.load(guard_file, made, threads=threads) if guard_file else None
    if made.info.name == "lite" and not quiet and query.strip() and not is_image_file(query) and beyond_nouns(query):
        say(SENTENCES.format(query=query), style="yellow")
    try:
        hits = find(index, query, made, k=k, where=where, guard=guard, ood_only=ood_only, exact=exact)
    except ImageError as error:
        raise ImageError(f"{query}: {error}") from error
    if as_json:
        print(json.dumps([hit.to_dict() for hit in hits], indent=2))
    elif not quiet:
        if hits:
            _print(hits)
        else:
            say("no image found" + " that meets these conditions" * bool(where or ood_only), style="yellow")
    if out is not None:
        from outclass.report.contact import contact_sheet

        about = {
            "Index": f"{index.path.name}, {len(index):,} images, {'approximate' if index.approximate else 'exact'}",
            "Encoder": f"{index.encoder} ({index.fingerprint})",
            **({"Threshold": limit_line(guard.threshold)} if guard and guard.threshold else {}),
            "Command": printable(shlex.join(["outclass", *sys.argv[1:]])),
            "Version": f"outclass {__version__}",
        }
        with atomic.write(out / "search.html") as page:
            page.write(contact_sheet(query, hits, index.find if thumbnails else None, about))
        if not quiet:
            say(f"wrote {out / 'search.html'}")


def _line(done: Indexed, out: Path, seconds: float) -> str:
    parts = [f"{done.new} new", f"{done.changed} changed", f"{done.unchanged} unchanged"]
    parts += [f"{done.gone} gone"] if done.gone else []
    parts += [f"{done.failed} could not be read"] if done.failed else []
    encoded = done.new + done.changed
    rate = f" ({encoded / seconds:.0f} images/s)" if encoded > 1 else ""
    line = f"{out}: {done.images} image{'' if done.images == 1 else 's'}; {', '.join(parts)}; {seconds:.1f} s{rate}"
    if done.recall is not None:
        line += f"; search is approximate, recall@10 {done.recall:.3f} on 100 images of it (--exact looks at every row)"
    return line


def _unread(out: Path) -> str:
    """The first few images of an index that could not be read, and why."""
    from outclass.cli.show import CONTROL
    from outclass.index import Index
    from outclass.known import NAMED, named

    rows = Index(out).table.search().where("NOT gone AND error IS NOT NULL").select(["id", "error"]).limit(NAMED + 1)
    return named([f"{row['id']} ({row['error']})" for row in rows.to_list()]).translate(CONTROL)


def _print(hits: Rows) -> None:
    from outclass.cli.tables import table

    judged = bool(hits) and hits[0].verdict is not None
    head = ("similarity", "pixels", *(["verdict", "ood_score", "label"] * judged), "image")
    rows = []
    for hit in hits:
        cells = [f"{hit.similarity:.4f}", f"{hit.width} x {hit.height}"]
        if hit.verdict is not None:
            decision = {True: "OOD", False: "ID", None: "-"}[hit.verdict.is_ood]
            cells += [decision, f"{hit.verdict.ood_score:.4f}", hit.verdict.label or ""]
        rows.append((*cells, hit.id))
    table(head, rows)
