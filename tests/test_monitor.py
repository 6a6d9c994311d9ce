"""The monitor: rate, drift and what is new, from verdicts; saved, loaded, shared by threads."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture

from outclass import Guard, MismatchError, NotReadyError, UsageError, Verdict
from outclass.decide.calibrated import Calibrated, Wanted
from outclass.decide.cusum import Cusum
from outclass.decide.threshold import Threshold
from outclass.monitor import Monitor
from outclass.monitor.drift import RECENT


@pytest.fixture(scope="module")
def guard():
    """Knows red and blue, calibrated on 200 scores."""
    made = Guard(["red", "blue"], encoder="toy")
    scores = np.random.default_rng(0).normal(-0.9, 0.02, 200).astype(np.float32)
    calibrated = Calibrated.make(Wanted(), scores, np.zeros(200, np.intp), 2)
    made.judge = replace(made.judge, calibrated=calibrated, threshold=calibrated.threshold(2))
    return made


def verdicts(guard, scores, start=0, word="tree"):
    """As the guard gives them for these scores."""
    scores = np.asarray(scores, np.float32)
    p_values = guard.calibrated.calibration.p_values(scores)
    for row, (score, p_value) in enumerate(zip(scores.tolist(), p_values.tolist(), strict=True), start):
        is_ood = score > guard.threshold.value
        yield Verdict(
            f"{row}.png",
            "red",
            0.5,
            score,
            guard.threshold.value,
            "calibrated",
            is_ood,
            p_value,
            word if is_ood else None,
        )


def usual(guard, n, seed=0):
    """Scores like those of the calibration."""
    return np.random.default_rng(seed).choice(guard.calibrated.calibration.scores, n)


def test_counts_rate_and_interval(toy_guard):
    monitor = Monitor(toy_guard)
    assert monitor.state()["ood_rate"] is None
    rows = [*toy_guard.scan([("a", picture((220, 30, 30)))]), Verdict("b", error="broken")]
    rows += [Verdict(str(row), "red", 0.1, -0.1, -0.9, "user", True) for row in range(3)]
    assert monitor.update(rows) == []
    state = monitor.state()
    assert (state["images"], state["ood"], state["failed"], state["ood_rate"]) == (4, 3, 1, 0.75)
    low, high = state["interval"]
    assert low < 0.75 < high
    assert state["drift"] is None
    assert "outclass calibrate" in state["no_drift"]
    assert "not calibrated; do it with outclass calibrate FOLDER --guard FILE -o my.guard" in monitor.describe()


def test_a_guard_without_a_threshold_has_no_rate():
    monitor = Monitor(Guard(["red", "blue"], encoder="toy"))
    monitor.update([Verdict("a", "red", 0.5, -0.5)])
    state = monitor.state()
    assert (state["images"], state["undecided"], state["ood_rate"], state["interval"]) == (1, 1, None, None)


def test_drift_is_an_alarm_once_and_says_what_is_new(guard):
    monitor = Monitor(guard)
    assert monitor.update(verdicts(guard, usual(guard, 600))) == []
    highest = float(guard.calibrated.calibration.scores.max())
    odd = np.linspace(highest + 0.01, highest + 0.02, 40)
    alarms = monitor.update(verdicts(guard, odd, start=600, word="barn"))
    assert sorted(alarm.test for alarm in alarms) == ["cusum", "martingale"]
    (alarm,) = [one for one in alarms if one.test == "martingale"]
    assert 600 < alarm.image <= 620
    assert "at most 0.01" in alarm.text
    assert alarm.new["negatives"]["barn"] == alarm.image - 600
    assert alarm.new["most_ood"][0]["id"] == f"{alarm.image - 1}.png", "the highest score is the most OOD"
    assert json.loads(json.dumps(alarm.to_dict()))["test"] == "martingale"
    assert monitor.update(verdicts(guard, odd, start=640)) == [], "each test raises one alarm"
    assert monitor.state()["drift"]["alarm_image"] == alarm.image
    assert f"alarm since image {alarm.image}" in monitor.describe()
    monitor.restart()
    assert monitor.state()["images"] == 0
    assert not monitor.state()["drift"]["alarm"]


def by_class(n=300):
    """A guard calibrated by class, on 150 images of each."""
    made = Guard(["red", "blue"], encoder="toy")
    scores = np.random.default_rng(1).normal(-0.9, 0.02, n).astype(np.float32)
    calibrated = Calibrated.make(Wanted(by_class=True), scores, np.arange(n) % 2, 2)
    made.judge = replace(made.judge, calibrated=calibrated, threshold=calibrated.threshold(2))
    return made


def test_cusum_hears_as_much_where_the_guard_is_calibrated_by_class(guard):
    # p-values by class come from fewer images and cannot be as small; the limit is for those of all images.
    made = by_class()
    monitor, scores = Monitor(made), np.full(20, float(made.calibrated.calibration.scores.max()) + 0.01)
    rows = [replace(row, p_value=1 / 151) for row in verdicts(guard, scores)]
    alarms = monitor.update(rows)
    plain = Cusum(300)
    plain.update(np.full(20, 1 / 301))
    assert [alarm.image for alarm in alarms if alarm.test == "cusum"] == [plain.alarm_at]
    assert monitor.state()["drift"]["cusum"]["value"] == pytest.approx(plain.value)


def test_a_monitor_is_loaded_with_its_guard_from_a_file_and_not_with_another_threshold(guard, tmp_path):
    guard.save(tmp_path / "my.guard")
    monitor = Monitor(guard)
    monitor.update(verdicts(guard, usual(guard, 50)))
    monitor.save(tmp_path / "a.monitor")
    assert Monitor.load(tmp_path / "a.monitor", Guard.load(tmp_path / "my.guard")).state() == monitor.state()
    stricter = Guard.load(tmp_path / "my.guard")
    stricter.judge = replace(stricter.judge, threshold=Threshold(-0.5, "user"))
    with pytest.raises(MismatchError, match="or threshold"):
        Monitor.load(tmp_path / "a.monitor", stricter)


def test_usual_images_raise_no_alarm_and_the_capital_falls(guard):
    monitor = Monitor(guard)
    monitor.update(verdicts(guard, usual(guard, 2000, seed=4)))
    drift = monitor.state()["drift"]
    assert not drift["alarm"]
    assert drift["log10_capital"] < 0.5


def test_what_is_new_speaks_of_recent_images(guard):
    monitor = Monitor(guard)
    highest = float(guard.calibrated.calibration.scores.max())
    monitor.update(verdicts(guard, [highest + 1] * 30, word="barn"))
    monitor.update(verdicts(guard, [float(guard.calibrated.calibration.scores.min())] * RECENT, start=30))
    assert monitor.state()["new"] == {"images": RECENT, "ood": 0, "negatives": {}, "labels": {}, "most_ood": []}


def test_frames_of_a_video_are_promised_nothing(guard):
    monitor = Monitor(guard, frames=True)
    highest = float(guard.calibrated.calibration.scores.max())
    alarms = monitor.update(verdicts(guard, [highest + 1] * 40))
    assert any("hint" in alarm.text and "at most" not in alarm.text for alarm in alarms)
    assert monitor.state()["drift"]["promised"] is False


def test_a_loaded_monitor_goes_on_as_if_nothing_had_happened(guard, tmp_path):
    scores = np.concatenate([usual(guard, 700), usual(guard, 300, 5) + 0.02])
    rows = list(verdicts(guard, scores))
    whole, first = Monitor(guard, seed=1), Monitor(guard, seed=1)
    whole.update(rows)
    first.update(rows[:650])
    first.save(tmp_path / "a.monitor")
    second = Monitor.load(tmp_path / "a.monitor", guard)
    second.update(rows[650:])
    assert second.state() == whole.state()
    second.save(tmp_path / "b.monitor")
    whole.save(tmp_path / "c.monitor")
    assert (tmp_path / "b.monitor").read_bytes() == (tmp_path / "c.monitor").read_bytes()


def test_a_monitor_of_another_guard_or_a_damaged_one_is_refused(guard, toy_guard, tmp_path):
    path = tmp_path / "a.monitor"
    Monitor(guard).save(path)
    with pytest.raises(MismatchError, match="another encoder, class list"):
        Monitor.load(path, toy_guard)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(MismatchError, match="damaged"):
        Monitor.load(path, guard)
    toy_guard.save(path)
    with pytest.raises(MismatchError, match="is a guard, expected a monitor"):
        Monitor.load(path, guard)
    with pytest.raises(UsageError, match="no such file"):
        Monitor.load(tmp_path / "none", guard)


def test_verdicts_of_changed_classes_are_refused(guard):
    monitor = Monitor(guard)
    changed = [replace(row, p_value=None) for row in verdicts(guard, usual(guard, 1))]
    with pytest.raises(NotReadyError, match="classes have changed"):
        monitor.update(changed)
    assert monitor.state()["images"] == 0


def test_a_score_that_is_no_number_counts_as_failed(guard):
    monitor = Monitor(guard)
    monitor.update([Verdict("a", "red", 0.5, float("nan"))])
    assert (monitor.state()["images"], monitor.state()["failed"]) == (0, 1)


def test_threads_lose_no_verdict(guard):
    monitor = Monitor(guard)
    rows = list(verdicts(guard, usual(guard, 100)))
    threads = [threading.Thread(target=lambda: [monitor.update([row]) for row in rows]) for _ in range(4)]
    for thread in threads:
        thread.start()
    states = [monitor.state() for _ in range(20)]
    for thread in threads:
        thread.join()
    assert all(state["ood"] <= state["images"] for state in states)
    assert monitor.state()["images"] == 400
    assert monitor._martingale.images == monitor._cusum.images == 400


@pytest.mark.parametrize("wrong", [{"alarm_rate": 0}, {"alarm_rate": 1.0}, {"level": 1}])
def test_numbers_out_of_range_are_refused(guard, wrong):
    for one in (guard, Guard(["red", "blue"], encoder="toy")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            Monitor(one, **wrong)
