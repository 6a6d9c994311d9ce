"""``outclass demo``: the main job on real photographs, with nothing to prepare."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from outclass.cli import options
from outclass.errors import MissingExtraError

# Photographs that come with scikit-image (its data/README.txt has their origins). The first are ID for the
# demo's classes, the others are not.
PHOTOGRAPHS = {
    "cat.png": "chelsea.png",
    "cup-of-coffee.png": "coffee.png",
    "rocket.jpg": "rocket.jpg",
    "motorcycle.png": "motorcycle_left.png",
    "astronaut.png": "astronaut.png",
    "bricks.png": "brick.png",
    "clock-in-motion.png": "clock_motion.png",
    "coins.png": "coins.png",
    "galaxies.jpg": "hubble_deep_field.jpg",
    "grass.png": "grass.png",
    "gravel.png": "gravel.png",
    "man-with-camera.png": "camera.png",
    "moon.png": "moon.png",
    "page-of-a-book.png": "page.png",
    "retina.jpg": "retina.jpg",
    "stained-tissue.png": "ihc.png",
}
CLASSES = "cat,cup of coffee,rocket,motorcycle"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")] = Path("outclass-demo"),
    classes: Annotated[str, typer.Option("--classes", "-c", help="Try other classes.")] = CLASSES,
    threshold: options.ThresholdValue = None,
) -> None:
    """Scan the photographs of scikit-image for a few classes with the bundled encoder.

    [bold]Examples[/]

      outclass demo

      outclass demo --classes "moon,coins"
    """
    from outclass.cli.judging import run
    from outclass.cli.show import say
    from outclass.guard import Guard
    from outclass.images.sources import Folder

    files = _copied(_photographs(), out / "photos")
    say(f"classes: {classes}")
    guard = Guard(classes, threshold=threshold)
    run(guard, Folder(out / "photos"), out, "csv", False, files.get)
    say(f"open {out / 'report.html'} in a browser; then try your own: outclass scan PHOTOS --classes cat,dog,car")


def _copied(photographs: dict[str, str], folder: Path) -> dict[str, str]:
    """The same photographs in a folder of the user's, to try other commands on."""
    folder.mkdir(parents=True, exist_ok=True)
    for shown, path in photographs.items():
        shutil.copyfile(path, folder / shown)
    return {shown: str(folder / shown) for shown in photographs}


def _photographs() -> dict[str, str]:
    """Shown name -> path, of those that the installed scikit-image brings along."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "demo", "the demo's photographs") from error
    folder = Path(data.__file__).parent
    return {shown: str(folder / file) for shown, file in PHOTOGRAPHS.items() if (folder / file).is_file()}
