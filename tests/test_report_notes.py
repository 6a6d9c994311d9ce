"""What the page says of a part of a scan, and of a scan that is watched for drift."""

from __future__ import annotations

from typing import Any

from test_report import SUMMARY, Parsed, headline, judged, page


def test_a_part_says_that_it_is_one() -> None:
    text = Parsed(page([judged("a.jpg", -0.1)], SUMMARY | {"part": "2/8"})).text
    assert "part 2 of 8 of a scan" in text
    assert "outclass merge" in text
    assert headline(page([], SUMMARY | {"part": "2/8"})) == "Part 2 of 8 has no images to judge"
    assert "outclass merge" not in Parsed(page([judged("a.jpg", -0.1)])).text


def watched(**drift: Any) -> dict[str, Any]:
    """What ``--watch --drift`` leaves in summary.json, an alarm unless ``drift`` says otherwise."""
    said = {"alarm": True, "alarm_image": 68, "alarm_rate": 0.01, "promised": True}
    said |= {"cusum": {"value": 3.0, "limit": 2.2, "alarm_image": 66}} | drift
    new = {"negatives": {"rooster": 2}, "labels": {"dog": 2}, "most_ood": []}
    rate = {"ood_rate": 0.4476, "interval": [0.2937, 0.6087], "level": 0.95, "images": 105}
    return SUMMARY | {"monitor": rate | {"drift": said, "no_drift": None, "new": new}}


def test_drift_alarm_is_on_the_page() -> None:
    text = Parsed(page([judged("a.jpg", -0.1)], watched())).text
    assert "Drift: at image 68 the images were no longer like the calibration images." in text
    assert "with probability at most 0.01" in text
    assert "looks like: rooster (2)" in text
    assert "OOD rate 44.8 % of 105 images (95 % interval 29.4 % to 60.9 %)" in text
    assert "reached its limit at image 66" in text


def test_no_alarm_and_no_promise_are_said() -> None:
    quiet = watched(alarm=False, alarm_image=None, cusum={"value": 0.1, "limit": 2.2, "alarm_image": None})
    text = Parsed(page([judged("a.jpg", -0.1)], quiet)).text
    assert "no longer like" not in text
    assert "Drift no alarm; CUSUM, a heuristic, below its limit" in text
    frames = Parsed(page([judged("a.jpg", -0.1)], watched(promised=False))).text
    assert "this is a hint" in frames
    assert "probability at most" not in frames
    assert "Drift" not in Parsed(page([judged("a.jpg", -0.1)])).text
