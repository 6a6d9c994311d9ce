"""The page on a telephone: the answer comes into sight; and the threshold's box, which shows less than is in use."""

from __future__ import annotations

import csv

import pytest
from conftest import GREEN, RED, save_picture

pytest.importorskip("fastapi")
pytest.importorskip("gradio", reason="needs gradio: outclass[page]")
pytest.importorskip("playwright", reason="needs playwright")
from serving import PICTURES
from test_page import browser, drop, served, status, visit  # noqa: F401
from test_page_session import looked_at

from outclass import Guard
from outclass.serve.page_blocks import slider
from outclass.serve.page_session import Session
from outclass.serve.service import Service

EXACT = -0.91234567  # shown as -0.912346, which is lower
NARROW = {"viewport": {"width": 390, "height": 844}}
FIRST = "#oc-said .oc-status, #oc-counts h2, .oc-card"
IN_SIGHT = f"""() => [...document.querySelectorAll("{FIRST}")].slice(0, 3).every((one) => {{
  const box = one.getBoundingClientRect();
  return box.height > 0 && box.top >= 0 && box.top < innerHeight - 100;
}}) && document.querySelector("#oc-said").getBoundingClientRect().top < 40"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    with served(folder, "-t", EXACT) as (_, address):
        yield address, folder


def pictures(folder, n):
    """Paths of ``n`` pictures, red and green by turns: more than a screen of cards."""
    return [save_picture(folder / f"{row}.png", (RED, GREEN)[row % 2]) for row in range(n)]


def test_on_a_telephone_the_answer_comes_into_sight_whatever_came_before(visit, tmp_path):  # noqa: F811
    page = visit(**NARROW)
    page.fill("#oc-classes textarea", "red")
    page.click("#oc-judge")
    status(page, "Classes: 1")
    page.evaluate("scrollTo(0, 0)")
    drop(page, pictures(tmp_path, 8))  # the page was too short to be scrolled, and words stood there already
    page.wait_for_function(IN_SIGHT)
    for classes, said in (("red", "Classes: 1"), ("red, red", "did not work"), ("red, red", "did not work")):
        page.evaluate("scrollTo(0, 0)")
        assert not page.evaluate(IN_SIGHT)
        page.fill("#oc-classes textarea", classes)
        page.click("#oc-judge")
        status(page, said)
        page.wait_for_function(IN_SIGHT)


def test_who_looks_elsewhere_is_left_there_and_a_wide_page_stays_where_it_is(visit, tmp_path):  # noqa: F811
    paths = pictures(tmp_path, 8)
    page = visit(**NARROW)
    drop(page, paths)
    page.wait_for_function(IN_SIGHT)
    page.mouse.wheel(0, -5000)
    page.wait_for_function("scrollY === 0")
    page.locator("#oc-threshold input[type=range]").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#oc-counts').textContent.includes('8 known')")
    page.wait_for_timeout(300)
    assert not page.evaluate(IN_SIGHT)
    wide = visit(viewport={"width": 1280, "height": 500})
    drop(wide, paths)
    wide.wait_for_timeout(300)
    assert wide.evaluate("scrollY") == 0


def test_the_box_shows_six_digits_whole_and_a_visit_to_it_decides_nothing(visit, tmp_path):  # noqa: F811
    page = visit(**NARROW)
    drop(page, pictures(tmp_path, 2))
    box = page.locator("#oc-threshold input[type=number]")
    page.wait_for_function("document.querySelector('#oc-threshold input[type=number]').value === '-0.912346'")
    assert box.evaluate("one => one.scrollWidth <= one.clientWidth && one.offsetWidth >= 120")  # -0.0000123457 fits too
    box.focus()
    page.keyboard.press("Tab")
    page.click("#oc-order input")
    page.get_by_role("option", name="Most known first").click()
    with page.expect_download() as waiting:
        page.click("a[download]")
    with open(waiting.value.path(), encoding="utf-8", newline="") as file:
        assert {float(row["threshold"]) for row in csv.DictReader(file)} == {EXACT}


def test_a_score_between_the_threshold_and_what_is_shown_of_it_is_judged_by_the_threshold():
    service = Service(Guard(["red", "blue"], encoder="toy", threshold=-0.9))
    try:
        session = Session(service, "en")
        session.add(looked_at(service, *PICTURES.items()))
        score = session.verdicts()[0][1].ood_score  # of the most unknown
        shown = float(f"{score:.6g}")
        limit = score - 1e-9 if shown > score else score + 1e-9  # by it and by what is shown, another decision
        session.set_threshold(limit)
        before = [verdict.is_ood for _, verdict in session.verdicts()]
        assert before[0] == (score > limit) != (score > shown)
        assert slider(session)["value"] == shown != limit
        assert (session.guard.threshold.value, [one.is_ood for _, one in session.verdicts()]) == (limit, before)
    finally:
        service.close(10)
