"""``outclass.evaluate``: which detectors are left out and why, wrong names, and broken or repeated images."""
# ruff: noqa: F811 (fixtures of another file)

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, save_picture
from PIL import Image
from test_benchmark import (  # noqa: F401
    WHITE,
    YELLOW,
    Counting,
    Spy,
    _toy_colours_differ,
    known,
    measured,
    row_of,
    sets,
    shades,
    spy,
)

from outclass import evaluate
from outclass.benchmark.table import MEAN
from outclass.detectors import base
from outclass.errors import MissingExtraError, UsageError
from outclass.known import leaders

# --- detectors that cannot run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detector", "reason", "options"),
    [
        ("gl_mcm", "no local vectors", {"encoder": Counting(patch_grid=None), "negatives": ["green"]}),
        ("mcm", "at least 2 classes", {"classes": ["red"], "negatives": ["green"]}),
        ("neglabel", "English", {"encoder": Counting(languages=("de",))}),
    ],
)
def test_all_leaves_out_what_cannot_run_and_says_why_a_name_is_an_error(
    detector: str, reason: str, options: dict[str, Any]
) -> None:
    found = measured(detectors="all", **options)
    assert reason in found.left_out[detector]
    assert detector not in found.scores
    assert {"max_logit", "knn"} <= set(found.scores)
    assert set(found.scores) | set(found.left_out) == set(base.all_detectors())
    with pytest.raises(UsageError, match=reason):
        measured(detectors=f"max_logit,{detector}", **options)


def test_without_scikit_learn_what_needs_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", *(name for name in sys.modules if name.startswith("sklearn."))):
        monkeypatch.setitem(sys.modules, module, None)
    found = measured(detectors="all", negatives=["green"])
    for name in ("one_class_svm",):
        assert "pip install" in found.left_out[name]
        assert name not in found.about["detectors"]
        with pytest.raises(MissingExtraError, match="pip install"):
            measured(detectors=[name])
    assert "knn" in found.scores


def test_what_learns_and_needs_local_vectors_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, spy: Any
) -> None:
    both = dataclasses.replace(Spy.info, needs=frozenset({"id_vectors", "patches"}))
    monkeypatch.setattr(Spy, "info", both)
    assert "local vectors, which an evaluation does not keep" in measured(detectors="all").left_out["spy"]
    with pytest.raises(UsageError, match="'spy' cannot run"):
        measured(detectors="spy")
    assert not spy


def test_a_detector_that_learns_gets_its_words_too() -> None:
    name = "ensemble:members=neglabel+knn"
    found = measured(detectors=[name, "knn"], negatives=["green", "pink"])
    assert found.about["negatives"][name]["words"] == 2
    assert row_of(found, name, "far").auroc > 0.9
    with pytest.raises(UsageError, match="needs negatives, and none are wanted"):
        measured(detectors=[name], negatives="none")


def test_one_detector_with_different_parameters_has_a_row_for_each() -> None:
    found = measured(detectors="knn:k=1,knn:k=9,ensemble:members=knn+max_logit")
    assert set(found.scores) == {"knn:k=1", "knn:k=9", "ensemble:members=knn+max_logit"}
    assert (found.scores["knn:k=1"].known < found.scores["knn:k=9"].known).all()
    assert found.about["detectors"]["knn:k=9"] == {"k": 9}


def test_the_natural_threshold_of_a_detector_that_learns_is_measured_too(
    spy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spy, "natural_threshold", lambda self: -0.9)
    found = measured(detectors="spy")
    assert found.scores["spy"].threshold is not None
    right = [(found.scores["spy"].known <= -0.9).mean(), (found.scores["spy"].unknown["far"] > -0.9).mean()]
    assert row_of(found, "spy", "far").detection_accuracy_natural == pytest.approx(np.mean(right))
    monkeypatch.setattr(Spy, "natural_threshold", lambda self: -float(len(getattr(self, "learned", ()))))
    # 61 images in five parts: one part is larger
    uneven = measured(shades(RED, 31, "red/") + shades(BLUE, 30, "blue/"), detectors="spy")
    assert uneven.scores["spy"].threshold is None  # of another value in each fold: no one threshold


def test_wrong_names_are_errors() -> None:
    with pytest.raises(UsageError, match="unknown detector 'nope'"):
        measured(detectors="max_logit,nope")
    with pytest.raises(UsageError, match="no detector"):
        measured(detectors=[])
    with pytest.raises(UsageError, match=r"no OOD set is called nowhere.*near, far"):
        measured(notes={"nowhere": "seen"})
    with pytest.raises(UsageError):
        evaluate(known(), sets(), encoder="toy", detectors="max_logit")  # in memory: nothing names the classes


# --- sets and their images --------------------------------------------------------------------------------------


def test_broken_images_are_counted_and_the_rest_is_measured() -> None:
    found = measured([*known(), ("red/bad.png", b"none")], {"far": [*shades(GREEN, 24), ("bad.png", b"none")]})
    assert [one.failed[0][0] for one in (found.known, *found.unknown)] == ["red/bad.png", "bad.png"]
    row = row_of(found, "max_logit", "far")
    assert (row.n_id, row.n_ood) == (60, 24)
    assert set(found.to_dict()["failed"]["far"]) == {"bad.png"}
    assert row == row_of(measured(ood={"far": shades(GREEN, 24)}), "max_logit", "far")


@pytest.mark.parametrize("side", ["id", "ood"])
def test_a_set_without_one_good_image_is_an_error_that_names_it(side: str, tmp_path: Any) -> None:
    (tmp_path / "ruins").mkdir()
    (tmp_path / "ruins" / "bad.png").write_bytes(b"none")
    options = {"id": tmp_path / "ruins"} if side == "id" else {"ood": [tmp_path / "ruins"]}
    with pytest.raises(UsageError, match="no image of 'ruins' could be read"):
        measured(**options)


def test_sets_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path: Any) -> None:
    paths = [tmp_path / part / "images" for part in ("a", "b")] + [tmp_path / "c"]
    for path, colour in zip(paths, (GREEN, YELLOW, WHITE), strict=True):
        save_picture(path / "0.png", colour)
    assert [one.name for one in measured(ood=[paths[0], paths[2]]).unknown] == ["images", "c"]
    assert [one.name for one in measured(ood=paths[:2]).unknown] == ["a/images", "b/images"]
    with pytest.raises(UsageError, match="twice"):
        measured(ood=[paths[0], f"{paths[0]}/"])


def test_real_images_are_told_apart_the_right_way_round(dev: Any, lite: Any) -> None:
    def some(name: str, step: int) -> list[tuple[str, str]]:
        paths = sorted((dev / name).rglob("*.*"))[::step]
        return [(path.relative_to(dev / name).as_posix(), str(path)) for path in paths]

    found = evaluate(
        some("imagenette_id10", 2),
        {"textures": some("textures_far", 3), "digits": some("digits_far", 4)},
        classes=str(dev / "imagenette_id10"),
        detectors="neglabel,max_logit,knn",
        encoder=lite,
    )
    for row in found.rows:
        assert row.auroc > 0.9, row
        assert row.fpr95_id_positive < 0.3, row
        assert row.n_id == 125
        assert row.id_accuracy is not None
        assert row.id_accuracy > 0.9
    assert row_of(found, "neglabel", "textures").detection_accuracy_natural > 0.8
    assert row_of(found, "knn", MEAN).false_alarms_at_rate < 0.15


def test_what_is_nearly_the_same_stays_together_and_is_said(lite, dev, tmp_path, monkeypatch) -> None:
    """Photographs beside JPEG copies of them: no detector may learn from the one and score the other."""
    monkeypatch.undo()  # the limit that users have
    for file in sorted((dev / "pets_vehicles" / "id").rglob("*.jpg"))[::6]:
        place = tmp_path / "id" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
        Image.open(file).convert("RGB").save(place / f"{file.stem}_again.jpg", quality=90)
    ood = dev / "pets_vehicles" / "ood" / "birds"
    found = evaluate(tmp_path / "id", ood, detectors="knn", encoder=lite)
    lead = leaders(found.known.ids, found.known.vectors)
    stem = [id_.removesuffix(".jpg").removesuffix("_again") for id_ in found.known.ids]
    pairs = [(row, stem.index(one)) for row, one in enumerate(stem) if stem.index(one) != row]
    together = [row for row, other in pairs if lead[row] == lead[other]]
    assert len(together) > 0.8 * len(pairs) > 10
    assert all(found.half[row] == found.half[other] for row, other in pairs if row in together)
    assert any("nearly the same as another" in remark for remark in found.remarks)
    # Were they apart, each would have its copy for a neighbour, at a distance of nearly nothing.
    assert np.median(found.scores["knn"].known[together]) > 0.4
