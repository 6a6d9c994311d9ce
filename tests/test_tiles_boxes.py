"""Boxes that somebody else found, and the pictures of what was judged."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import BLUE, RED
from test_tiles import box, scene

from outclass import Guard, ImageError, UsageError
from outclass.images.tiles import Boxes

# Pictures


def test_the_unknown_is_framed_where_it_is(toy_guard, tmp_path):
    orange = np.array([0xB4, 0x48, 0x0F])
    image = scene((960, 720), (720, 540, 960, 720), BLUE)
    guard = Guard(["red", "green"], "toy", threshold=-0.9)
    seen = guard.check_tiles(image, boxes=[(720, 540, 960, 720, "cone"), (0, 0, 300, 300)])
    drawn = np.asarray(seen.draw()).astype(int)
    rows, columns = np.nonzero(np.abs(drawn - orange).sum(axis=2) < 6)
    pad = 14
    assert 720 <= columns.min() - pad <= 724
    assert 955 <= columns.max() - pad <= 960
    assert 540 <= rows.min() - pad <= 544
    assert np.asarray(guard.check_tiles(scene(colour=RED), "2x2").draw()).shape[2] == 3
    seen.save(tmp_path / "a.svg")
    assert "cone: OOD" in (tmp_path / "a.svg").read_text("utf-8")
    assert "OOD: image" in (tmp_path / "a.svg").read_text("utf-8")


def test_there_is_no_picture_of_an_image_that_was_not_read(toy_guard):
    with pytest.raises(ImageError, match="no picture"):
        toy_guard.check_tiles(b"broken", "2x2").draw()
    with pytest.raises(ImageError, match="photos=True"):
        next(toy_guard.scan_tiles([scene()], "2x2")).draw()


def test_pictures_stay_in_their_folder_and_apart(toy_guard, tmp_path):
    from outclass.report.tiles import Overlays

    overlays = Overlays(tmp_path / "drawn")
    ids = ["../../up.png", "/etc/a.png", "a:b.png", "a?b.png", "ü/<b>.png"]
    for verdict in toy_guard.scan_tiles([(id, scene()) for id in ids], "2x2", photos=True):
        overlays.add(verdict)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert overlays.n == len(written) == len(ids)
    assert all(path.resolve().is_relative_to(tmp_path / "drawn") for path in written)


# Boxes


def test_given_boxes_are_judged_as_tiles_are(toy_guard):
    seen = toy_guard.check_tiles(scene(), boxes=[(290, 190, 370, 270, "thing"), (0, 0, 100, 100)])
    assert [tile.is_ood for tile in seen.tiles] == [True, False]
    assert [tile.name for tile in seen.tiles] == ["thing", None]
    assert seen.is_ood is True
    assert box(seen.tiles[0]) == (290, 190, 370, 270)
    alone = toy_guard.check(scene().crop((290, 190, 370, 270)))
    assert seen.tiles[0].ood_score == pytest.approx(alone.ood_score)


@pytest.mark.parametrize(
    ("given_box", "said"),
    [
        ((5, 5, 5, 9), "empty"),
        ((9, 5, 5, 9), "empty"),
        ((500, 5, 600, 9), "outside"),
        ((-50, -50, 0, 0), "outside"),
        ((1, 2, "wide", 4), "right is no number: 'wide'"),
        ((1, 2, float("nan"), 4), "right is no number"),
        ((1, 2, None, 4), "right is no number"),
        ((1, float("inf"), 3, 4), "top is no number"),
        ((1, 2, 3), "got 3 numbers"),
    ],
)
def test_a_box_that_is_none_is_a_row_with_the_reason(toy_guard, given_box, said):
    seen = toy_guard.check_tiles(scene(), boxes=[(0, 0, 50, 50), given_box])
    assert [tile.error is None for tile in seen.tiles] == [True, False]
    assert said in seen.tiles[1].error
    assert (seen.error, seen.is_ood) == (None, False)
    none = toy_guard.check_tiles(scene(), boxes=[given_box])
    assert said in none.error
    assert none.is_ood is None
    assert len(none.tiles) == 1


def test_a_box_is_cut_at_the_edge_of_the_image():
    (cut,) = Boxes({"a": [(-5.4, 10.2, 7.6, 1000)]}).boxes("a", 30, 40)
    assert cut.edges == (0, 10, 8, 40)


def test_boxes_come_from_a_csv(toy_guard, tmp_path, caplog):
    for name in "abc":
        scene().save(tmp_path / f"{name}.png")
    file = tmp_path / "boxes.csv"
    file.write_text(
        "\ufeffid,score,left,top,right,bottom,name\nb.png,1,290,190,370,270,cone\na.png,1,0,0,90,90,\n"
        "b.png,1,0,0,90,90,car\nelsewhere.png,1,0,0,9,9,x\n",
        "utf-8",
    )
    rows = list(toy_guard.scan_tiles(tmp_path, boxes=file))
    assert [(row.id, row.is_ood) for row in rows] == [("a.png", False), ("b.png", True), ("c.png", None)]
    assert [tile.name for tile in rows[1].tiles] == ["cone", "car"]
    assert "no box of this image" in rows[2].error
    assert "elsewhere.png" in caplog.text
    file.write_text("id,x,y,w,h\na.png,1,2,3,4\n")
    with pytest.raises(UsageError, match="no column left, top, right, bottom"):
        toy_guard.scan_tiles(tmp_path, boxes=file)
    with pytest.raises(UsageError, match="cannot read the boxes"):
        toy_guard.scan_tiles(tmp_path, boxes=tmp_path / "none.csv")
