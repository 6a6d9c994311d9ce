"""What holds of every kind of source: how far a scan came is one number, and names are all that is held."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from fractions import Fraction

import pytest
from conftest import BLUE, RED, save_picture
from holders import DATA, verdicts, write_tar, write_zip

from outclass.images.sources import Folder, open_source


@pytest.fixture
def place(tmp_path):
    """Ten pictures, some of them in archives, and what lists them."""
    for number in range(6):
        save_picture(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", (RED, BLUE)[number % 2])
    write_tar(tmp_path / "photos" / "s.tar", [(f"{n}.png", DATA["red"]) for n in range(2)])
    write_zip(tmp_path / "photos" / "s.zip", [(f"{n}.png", DATA["blue"]) for n in range(2)])
    names = ["a/0.png", "s.tar", "b/1.png", "gone.png", "s.zip"]
    (tmp_path / "photos" / "list.txt").write_text("\n".join(names))
    (tmp_path / "photos" / "table.csv").write_text("\n".join(["path", *names]))
    return tmp_path


def opened(place, kind):
    if kind == "video":
        pytest.importorskip("av")
        from test_sources_video import film

        if not (place / "clip.mkv").exists():
            film(place / "clip.mkv", [Fraction(n, 10) for n in range(30)])
        return open_source(place / "clip.mkv", fps=4)
    what = {
        "folder": place / "photos",
        "glob": f"{place}/photos/**/*.[pzt][nia][gpr]",
        "list": place / "photos" / "list.txt",
        "column": place / "photos" / "table.csv",
        "iterable": [place / "photos" / "a" / "0.png", DATA["red"], str(place / "photos" / "s.tar"), DATA["blue"]],
        "dataset": [{"image": {"bytes": DATA[name], "path": None}} for name in ("red", "blue", "red", "red", "blue")],
    }
    return open_source(what[kind])


@pytest.mark.parametrize("kind", ["folder", "glob", "list", "column", "iterable", "dataset", "video"])
def test_every_source_goes_on_at_any_position(place, kind):
    whole = said(verdicts(opened(place, kind)))
    assert len(whole) >= 5
    assert len({id for id, *_ in whole}) == len(whole)
    for position in range(len(whole) + 1):
        source = opened(place, kind)
        first = verdicts(itertools.islice(source, position))
        rest = verdicts(itertools.islice(source, position, None))
        assert said([*first, *rest]) == whole, position


def said(rows):
    """Without scores, whose last bit depends on how many images are judged at once."""
    return [(row.id, row.label, row.is_ood, row.error) for row in rows]


def test_of_a_folder_of_many_files_the_names_alone_are_held(tmp_path):
    count = 20_000
    for number in range(count):
        os.close(os.open(f"{tmp_path}/{number:08}.jpg", os.O_CREAT | os.O_WRONLY))
    source = Folder(tmp_path)
    tracemalloc.start()
    try:
        items = iter(source)
        assert next(items).id == "00000000.jpg"
        _, most = tracemalloc.get_traced_memory()
        assert sum(1 for _ in items) == count - 1
        _, later = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / count < 90, "bytes a name"
    assert later / count < 90
