"""The page of a scan in a browser: no two labels of its histogram share a place, whatever the screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from test_report import NO_THRESHOLD, SUMMARY, judged, page

pytest.importorskip("playwright", reason="needs playwright")
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GAP = 6  # pixels between two labels in one line, about the width of a letter
LABELS = """() => [...document.querySelectorAll(".chart text")].filter((t) => t.checkVisibility()).map((t) => {
  const box = t.getBoundingClientRect();
  return { text: t.textContent.trim(), left: box.left, right: box.right, top: box.top, bottom: box.bottom };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        if os.environ.get("OUTCLASS_REQUIRE_DATA") == "1":
            pytest.fail("no browser (OUTCLASS_REQUIRE_DATA=1)")
        pytest.skip("no browser")
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def labels(browser: Browser, html: str, width: int) -> list[dict[str, Any]]:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    try:
        tab.set_content(html)
        found: list[dict[str, Any]] = tab.evaluate(LABELS)
        return found
    finally:
        tab.close()


@pytest.mark.parametrize("width", [320, 390, 600, 1280])
@pytest.mark.parametrize(
    ("low", "high", "threshold", "source"),
    [
        (-1.0, 0.0, -0.273498446, "calibrated"),
        (-1.0, 0.0, -0.651234, "calibrated"),
        (-1.0, 0.0, -0.5, "natural"),
        (-0.3, -0.2, -0.2987654, "calibrated"),
        (-0.00021, -0.00014, -0.000172346, "calibrated"),
        (100_000.0, 170_000.0, 133_333.0, "user"),
        (-1.0, 0.0, None, None),
    ],
)
def test_no_label_of_the_histogram_covers_another(
    browser: Browser, width: int, low: float, high: float, threshold: float | None, source: str | None
) -> None:
    scores = [low + (high - low) * i / 200 for i in range(201)]
    summary = NO_THRESHOLD if threshold is None else SUMMARY | {"threshold": threshold, "threshold_source": source}
    found = labels(browser, page([judged(str(i), s, threshold) for i, s in enumerate(scores)], summary), width)
    assert {"images", "ood_score (higher = more OOD)"} <= {label["text"] for label in found}
    for one, other in combinations(found, 2):
        apart = one["right"] + GAP <= other["left"] or other["right"] + GAP <= one["left"]
        assert apart or one["bottom"] <= other["top"] or other["bottom"] <= one["top"], (one, other)
    for label in found:
        assert 0 <= label["left"] <= label["right"] <= width, label
