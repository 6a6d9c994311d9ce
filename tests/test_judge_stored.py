"""Guards that learned, in a file: the same verdicts, the same bytes, all that recalibration needs, and no pickle."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learning import COLD, LEARNERS, WARM, BlindToy, images

from outclass import Guard, MismatchError, NotReadyError, OutclassError, UsageError, load_encoder, stored

PROBE = [*images(*WARM)[:20], *images(*COLD)[:20], ("broken", b"no image")]


def calibrated(**options):
    guard = Guard(WARM, "toy")
    guard.calibrate(images(*WARM), **options)
    return guard


def fitted(name, **options):
    guard = Guard(WARM, "toy")
    guard.fit(images(*WARM), name, **options)
    return guard


def with_user_threshold():
    guard = calibrated()
    guard.set_threshold(-0.6)
    return guard


def after_a_change():
    guard = Guard(WARM[:3], "toy")
    guard.calibrate(images(*WARM), by_class=True)
    guard.add_classes("pink")
    return guard


def of_patches():
    guard = Guard(WARM, "toy", "gl_mcm")
    guard.calibrate(images(*WARM))
    return guard


MAKERS = {
    "rate": calibrated,
    "confidence": lambda: calibrated(confidence=0.9),
    "by class": lambda: calibrated(by_class=True),
    "ood": lambda: calibrated(ood=images(*COLD), goal="cost", cost_miss=3.0),
    "no vectors": lambda: calibrated(keep_vectors=False),
    "user": with_user_threshold,
    "after a change": after_a_change,
    "patches": of_patches,
    **{name: lambda name=name: fitted(name) for name in LEARNERS},
    "not calibrated": lambda: fitted("knn", hold_out=0),
    "not fitted": lambda: Guard(WARM, "toy", "knn"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_loaded_guard_gives_the_same_verdicts_and_saves_the_same_bytes(tmp_path, monkeypatch, kind):
    guard = MAKERS[kind]()
    guard.save(tmp_path / "a.guard")
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # who runs a guard need not have what fitted it
    again = Guard.load(tmp_path / "a.guard")
    again.save(tmp_path / "b.guard")
    assert (tmp_path / "a.guard").read_bytes() == (tmp_path / "b.guard").read_bytes()
    assert again.threshold == guard.threshold
    assert (again.calibrated is None) == (guard.calibrated is None)
    if kind == "not fitted":
        with pytest.raises(NotReadyError):
            again.check(PROBE[0][1])
        return
    assert list(again.scan(PROBE)) == list(guard.scan(PROBE))
    if guard.calibrated:
        assert again.calibrated.describe(again.classes) == guard.calibrated.describe(guard.classes)
        assert again.calibrated.operating == guard.calibrated.operating


@pytest.mark.parametrize("kind", MAKERS)
def test_making_it_again_gives_the_same_bytes(tmp_path, kind):
    MAKERS[kind]().save(tmp_path / "a")
    MAKERS[kind]().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", ["by class", "ood", "after a change", "confidence", "mahalanobis"])
def test_a_loaded_guard_recalibrates_without_an_image(tmp_path, kind):
    guard = MAKERS[kind]()
    guard.save(tmp_path / "a")
    encoder = BlindToy()
    again = Guard.load(tmp_path / "a", encoder=encoder)
    encoder.blind = True
    for one in (guard, again):
        one.add_classes("brown")
        one.recalibrate()
    encoder.blind = False
    assert again.threshold == guard.threshold
    assert again.threshold.source == "calibrated"
    assert list(again.scan(PROBE)) == list(guard.scan(PROBE))


@pytest.mark.parametrize("kind", ["no vectors", "patches"])
def test_a_guard_without_kept_images_holds_none_and_cannot_recalibrate(tmp_path, kind):
    MAKERS[kind]().save(tmp_path / "a")
    _, arrays = stored.load(tmp_path / "a", "guard")
    assert set(arrays) == {"classes", "calibrated.scores"}
    with pytest.raises(NotReadyError):
        Guard.load(tmp_path / "a").recalibrate()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loaded_guard_still_knows_what_it_was_fitted_on(tmp_path, name):
    guard = fitted(name)
    guard.save(tmp_path / "a")
    first, second = (one.calibrate(images(*WARM)) for one in (guard, Guard.load(tmp_path / "a")))
    assert first.known.fitted == second.known.fitted
    assert len(second.known.fitted) > len(second.known.ids) > 20


@pytest.mark.parametrize("kind", ["by class", *LEARNERS])
def test_a_guard_of_another_encoder_is_refused_and_both_are_named(tmp_path, kind):
    class Other(type(load_encoder("toy"))):
        info = dataclasses.replace(load_encoder("toy").info, name="other", weights="others")

    MAKERS[kind]().save(tmp_path / "a")
    with pytest.raises(MismatchError, match=r"'toy'.*'other'"):
        Guard.load(tmp_path / "a", encoder=Other())


def test_a_refused_calibration_leaves_guard_and_file_as_they_were(tmp_path):
    guard = calibrated()
    guard.save(tmp_path / "a")
    before = list(guard.scan(PROBE))
    for call in (
        lambda: guard.calibrate(images(*WARM)[:5]),
        lambda: guard.calibrate([]),
        lambda: guard.calibrate(images(*WARM), ood=images(*COLD)[:5]),
        lambda: guard.fit(images(*WARM)[:1], "knn"),
        lambda: guard.fit([]),
        lambda: guard.fit(images(*WARM), "max_logit"),
    ):
        with pytest.raises(UsageError):
            call()
        assert list(guard.scan(PROBE)) == before
    guard.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def saved(folder, kind):
    MAKERS[kind]().save(folder / "whole.guard")
    header, arrays = stored.load(folder / "whole.guard", "guard")
    return {key: value for key, value in header.items() if key not in ("kind", "schema", "version")}, arrays


def use(path):
    guard = Guard.load(path)
    list(guard.scan(PROBE))
    with contextlib.suppress(NotReadyError):
        guard.recalibrate()
    with contextlib.suppress(UsageError):
        guard.calibrate(images(*WARM))
    list(guard.scan(PROBE))


@pytest.mark.parametrize("kind", ["rate", "ood", *LEARNERS])
def test_a_guard_that_lost_an_array_is_refused_or_whole_but_never_a_crash(tmp_path, kind):
    about, arrays = saved(tmp_path, kind)
    refused = set()
    for lost in arrays:
        stored.save(tmp_path / "b", "guard", about, {name: one for name, one in arrays.items() if name != lost})
        try:
            use(tmp_path / "b")
        except MismatchError:
            refused.add(lost)
        except NotReadyError:
            assert lost.startswith("fitted.")
    assert {name for name in arrays if name.startswith("detector.")} <= refused
    assert {"classes", "calibrated.scores", "evidence.id"} & set(arrays) <= refused


@pytest.mark.parametrize("kind", LEARNERS)
def test_learned_arrays_that_do_not_fit_are_refused(tmp_path, kind):
    about, arrays = saved(tmp_path, kind)
    crashed = []
    for name, array in arrays.items():
        for cut in (array[:-1], array[..., :-1] if array.ndim > 1 else array[:-1]):
            stored.save(tmp_path / "b", "guard", about, {**arrays, name: np.ascontiguousarray(cut)})
            try:
                with contextlib.suppress(OutclassError):
                    use(tmp_path / "b")
            except Exception as error:
                crashed.append(f"{name} {cut.shape} instead of {array.shape}: {type(error).__name__}")
    assert crashed == []


@pytest.mark.parametrize(("at", "value"), [
    (("threshold", "by_class"), [-0.5]), (("threshold", "value"), "x"), (("calibrated", "operating"), "x"),
    (("calibrated", "calibration"), {}), (("calibrated",), {"rate": 1}), 
    (("evidence", "wanted"), {"rate": 1}), (("evidence", "wanted"), "x"),
    (("evidence", "names"), []),
    (("threshold",), "x"), (("detector", "params"), {"j": 1}), (("calibrated", "calibration", "false_alarm_rate"), 7),
])  # fmt: skip
def test_a_header_that_says_nonsense_is_refused(tmp_path, at, value):
    about, arrays = saved(tmp_path, "by class")
    damaged = copy.deepcopy(about)
    place = damaged
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    stored.save(tmp_path / "b", "guard", damaged, arrays)
    with pytest.raises(MismatchError, match="damaged"):
        Guard.load(tmp_path / "b")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "whole.guard"
    fitted("knn").save(path)
    return path.read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_header_of_a_fitted_guard_is_refused_or_whole_but_never_a_crash(tmp_path_factory, whole, data):
    end = 8 + int.from_bytes(whole[:8], "little")
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.guard"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(OutclassError):
        Guard.load(path)
