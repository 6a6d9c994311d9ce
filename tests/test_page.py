"""The page in a real browser: dropping, editing, sliding, two languages, keyboard, camera; and nothing leaves."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import BLUE, GREEN, RED, ROOT, command, encoded, picture, save_picture

pytest.importorskip("fastapi")
pytest.importorskip("gradio", reason="needs gradio: outclass[page]")
pytest.importorskip("playwright", reason="needs playwright")
from playwright.sync_api import sync_playwright
from serving import TOKEN

from outclass.records import VERDICT_FIELDS

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SECONDS = 30_000  # milliseconds: a limit for a hang, not for a slow machine
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(element);
    if (!words.length || !element.checkVisibility({ visibilityProperty: true }) || element.closest("svg, script, style")
        || element.closest("[disabled]")) continue;
    const [a, b] = [light(rgb(style.color)), light(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([words[0].textContent.trim(), style.color, ground(element).join()]);
  }
  return bad;
}"""


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = f"no browser: one of {', '.join(BROWSERS)}"
        if os.environ.get("OUTCLASS_REQUIRE_DATA") == "1":
            pytest.fail(reason + " (OUTCLASS_REQUIRE_DATA=1)")
        pytest.skip(reason)
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@contextlib.contextmanager
def served(folder, *options):
    """(process, address) of a toy guard with its page; its temporary files are in ``folder / tmp``."""
    (folder / "tmp").mkdir()
    (folder / "token").write_text(TOKEN)
    line = [sys.executable, "-m", "outclass", "serve", "-c", "red,blue", "-e", "toy", "-t", "-0.9", "--port", "0"]
    line += ["--admin-token-file", "token", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "300", "TMPDIR": str(folder / "tmp")}
    with open(folder / "said", "w+") as said:
        running = subprocess.Popen(line, stderr=said, stdout=said, env=environment, cwd=folder)
        try:
            limit = time.monotonic() + 90
            while not (found := re.search(r"(http://\S+) serves", (folder / "said").read_text())):
                assert running.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < limit
                time.sleep(0.1)
            yield running, found[1]
        finally:
            running.kill()
            running.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("lancedb")
    folder = tmp_path_factory.mktemp("page")
    for name, colour in (("a-red.png", RED), ("b-green.png", GREEN), ("c/blue.png", BLUE)):
        save_picture(folder / "photos" / name, colour)
    assert (
        command("index", folder / "photos", "-o", folder / "photos.lance", "-e", "toy", "--thumbnails").returncode == 0
    )
    with served(folder, "--index", folder / "photos.lance") as (_, address):
        yield address, folder


@pytest.fixture
def pictures(tmp_path):
    """Paths of three pictures and of a file that is none."""
    paths = [save_picture(tmp_path / f"{name}.png", colour) for name, colour in
             (("red", RED), ("green", GREEN), ("blue", BLUE))]  # fmt: skip
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return [*paths, tmp_path / "bad.png"]


@pytest.fixture
def visit(browser, server):
    """Opens the page as somebody new; afterwards nothing may have gone wrong or elsewhere."""
    address, _ = server
    wrong, contexts = [], []

    def open_page(**options):
        context = browser.new_context(**{"locale": "en-GB", **options})
        contexts.append(context)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((f"{address}/", "data:", "blob:"))
                else wrong.append(sent.url))  # fmt: skip
        page.on("response", lambda said: wrong.append(f"{said.status} {said.url}") if said.status >= 400 else None)
        page.goto(address)
        page.locator("#oc-classes textarea").wait_for()
        page.wait_for_function("document.querySelector('#oc-classes textarea').value !== ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def drop(page, paths):
    page.set_input_files("#oc-check-files", paths)
    page.wait_for_selector(f".oc-card:nth-of-type({len(paths)})")


def shown(page):
    """(name, word) of every card, in order."""
    return [
        (card.locator(".oc-name").inner_text(), card.locator(".oc-chip").inner_text())
        for card in page.locator("#oc-gallery .oc-card").all()
    ]


def status(page, words):
    page.wait_for_function("words => document.querySelector('.oc-status')?.textContent.includes(words)", arg=words)


FIRST = [("green.png", "unknown"), ("blue.png", "known"), ("red.png", "known"), ("bad.png", "not readable")]


def test_dropped_files_become_cards_and_never_files_of_the_server(visit, server, pictures):
    page = visit()
    assert page.inner_text("#oc-gallery b") == "No images yet"
    drop(page, pictures)
    found = shown(page)
    assert (found[0], found[-1], sorted(found)) == (FIRST[0], FIRST[-1], sorted(FIRST))
    assert "4 in all: 2 known, 1 unknown, 1 not readable" in page.inner_text("#oc-counts")
    assert page.locator(".oc-card img").count() == 3
    assert "format" in page.inner_text(".oc-why") or "read" in page.inner_text(".oc-why")
    assert page.locator("#oc-histogram svg").count() == 1
    held = [path for path in (server[1] / "tmp").rglob("*") if path.is_file()]
    assert not [path for path in held if path.read_bytes() == pictures[0].read_bytes()]


NASTY = "${document.title='x'}{{7*7}}<img src=x onerror=document.title=1>&amp;'\"`.png"


def test_names_are_text_to_the_browser(visit, tmp_path):
    page = visit()
    title = page.title()
    drop(page, [save_picture(tmp_path / NASTY, GREEN)])
    assert page.get_attribute("#oc-gallery .oc-name", "title") == NASTY.replace('"', "%22")  # so browsers send it
    assert NASTY.startswith(page.inner_text("#oc-gallery .oc-name")[:20])
    for names, said in ((f'red\n"{NASTY[:-4].replace(chr(34), chr(34) * 2)}"', "Classes: 2"), ("x\u202e", "u202e")):
        page.fill("#oc-classes textarea", names)
        page.click("#oc-judge")
        status(page, said)
    assert page.title() == title
    assert page.locator("#oc-gallery [onerror], .oc-status *").count() == 0


def test_files_can_be_dropped_with_the_mouse_anywhere(visit):
    page = visit()
    data = list(encoded(picture(GREEN)))
    page.evaluate(
        """data => { const held = new DataTransfer();
        held.items.add(new File([new Uint8Array(data)], "dragged.png", { type: "image/png" }));
        for (const kind of ["dragover", "drop"])
          document.querySelector("#oc-gallery").dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: held })); }""",
        data,
    )
    page.wait_for_selector(".oc-card")
    assert shown(page) == [("dragged.png", "unknown")]


def test_other_classes_judge_the_same_images_again_and_bad_ones_are_explained(visit, pictures):
    page, sent = visit(), []
    drop(page, pictures)
    page.on("request", lambda one: sent.append(one.url) if one.url.endswith("/page/images") else None)
    page.fill("#oc-classes textarea", "red\ngreen")
    page.click("#oc-judge")
    status(page, "Classes: 2")
    assert dict(shown(page)) == {
        "blue.png": "unknown", "green.png": "known", "red.png": "known", "bad.png": "not readable",
    }  # fmt: skip
    page.fill("#oc-classes textarea", "red, red")
    page.click("#oc-judge")
    status(page, "That did not work")
    assert page.input_value("#oc-classes textarea") == "red, red"
    assert dict(shown(page))["green.png"] == "known"
    assert sent == []


def test_two_visitors_see_neither_images_nor_classes_of_each_other(visit, pictures):
    mine, yours = visit(), visit()
    drop(mine, pictures[:2])
    mine.fill("#oc-classes textarea", "green")
    mine.click("#oc-judge")
    status(mine, "Classes: 1")
    drop(yours, pictures[2:3])
    assert shown(yours) == [("blue.png", "known")]
    assert yours.input_value("#oc-classes textarea") == "red\nblue"
    again = visit()
    assert again.locator(".oc-card").count() == 0
    assert again.input_value("#oc-classes textarea") == "red\nblue"


def test_the_slider_decides_and_the_order_turns(visit, pictures):
    page = visit()
    drop(page, pictures[:1])
    drop(page, pictures[1:3])  # the ends of the slider move, its thumb stays
    page.wait_for_function("Math.abs(document.querySelector('#oc-threshold input[type=range]').value - (-0.9)) < 0.01")
    page.locator("#oc-threshold input[type=range]").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#oc-counts').textContent.includes('3 known, 0 unknown')")
    page.keyboard.press("Home")  # the lowest score that there is, which pure blue has
    page.wait_for_function("document.querySelector('#oc-counts').textContent.includes('1 known, 2 unknown')")
    page.click("#oc-own")
    page.wait_for_function("document.querySelector('#oc-counts').textContent.includes('2 known, 1 unknown')")
    page.click("#oc-order input")
    page.get_by_role("option", name="Most known first").click()
    page.wait_for_function("[...document.querySelectorAll('.oc-name')].at(-1).textContent === 'green.png'")
    page.click("#oc-clear")
    page.wait_for_function("!document.querySelector('.oc-card')")


def test_it_speaks_the_browsers_language_and_another_when_asked(visit, pictures):
    page = visit(locale="zh-CN")
    drop(page, pictures)
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert page.inner_text("#oc-judge") == "重新判断"
    assert "已知 2，未知 1" in page.inner_text("#oc-counts")
    assert shown(page)[0] == ("green.png", "未知")
    page.get_by_label("English").check()
    page.wait_for_function("document.documentElement.lang === 'en'")
    assert page.inner_text("#oc-judge") == "Judge again"
    assert shown(page)[0] == ("green.png", "unknown")
    assert not re.search(r"[\u4e00-\u9fff]", page.inner_text("body").replace("中文", ""))


def test_the_verdicts_come_as_csv(visit, pictures):
    page = visit()
    drop(page, pictures)
    with page.expect_download() as waiting:
        page.click("a[download]")
    assert waiting.value.suggested_filename == "verdicts.csv"
    with open(waiting.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(VERDICT_FIELDS)
    assert [(row["id"], row["is_ood"]) for row in rows] == [
        ("red.png", "false"), ("green.png", "true"), ("blue.png", "false"), ("bad.png", ""),
    ]  # fmt: skip
    assert rows[-1]["error"]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit, pictures):
    page = visit()
    drop(page, pictures)
    reached = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        place, outline, name = page.evaluate("""() => {
          const at = document.activeElement;
          const drawn = at.id.endsWith("-files") ? at.nextElementSibling : at;
          const style = getComputedStyle(drawn);
          const name = at.ariaLabel || [...(at.labels ?? [])].map((one) => one.textContent).join() || at.textContent;
          const drawn_round = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
          return [at.closest("[id^=oc-]")?.id ?? "", drawn_round, name.trim()];
        }""")
        if place:
            reached.setdefault(place, (outline, name))
    wanted = ["oc-check-files", "oc-classes", "oc-judge", "oc-threshold", "oc-own", "oc-order", "oc-clear", "oc-counts",
              "oc-calibration", "oc-publishing", "oc-language", "oc-query", "oc-find"]  # fmt: skip
    assert set(wanted) <= set(reached)
    assert [place for place in wanted if not reached[place][0]] == []
    assert [place for place in wanted if not reached[place][1]] == []
    page.locator("#oc-judge").focus()
    page.keyboard.press("Enter")
    status(page, "Classes: 2")


def test_calibration_counts_what_is_missing(visit, pictures):
    page = visit()
    page.click("#oc-calibration > button")
    page.set_input_files("#oc-known-files", pictures)
    page.wait_for_function("document.querySelector('#oc-calibrated').textContent.includes('of 19 images')")
    assert page.locator(".oc-card").count() == 0
    page.locator("#oc-rate").get_by_label("20 %").check()
    page.wait_for_function("document.querySelector('#oc-calibrated').textContent.includes('of 4 images')")


def test_the_index_is_searched_and_shows_its_own_thumbnails(visit):
    page = visit()
    page.fill("#oc-query textarea, #oc-query input", "green")
    page.click("#oc-find")
    page.wait_for_selector("#oc-hits .oc-card")
    names = page.locator("#oc-hits .oc-name").all_inner_texts()
    assert (names[0], sorted(names)) == ("b-green.png", ["a-red.png", "b-green.png", "c/blue.png"])
    assert page.locator("#oc-hits .oc-chip").first.inner_text() == "unknown"
    assert page.locator("#oc-hits img").count() == 3


def test_the_camera_takes_a_picture(visit):
    page = visit()
    page.click("[data-oc=camera]")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    page.click("[data-oc=shoot]")
    page.wait_for_selector(".oc-card img")
    assert shown(page)[0][0].startswith("camera-")
    page.click("[data-oc=close]")
    page.wait_for_function("document.querySelector('video').srcObject === null")


def test_only_the_token_publishes(visit):
    page = visit()
    page.click("#oc-publishing > button")

    def publish(classes, token, answer):
        page.fill("#oc-classes textarea", classes)
        page.click("#oc-judge")
        status(page, "Classes: ")
        page.fill("#oc-token input", token)
        page.click("#oc-publish")
        status(page, answer)
        assert page.input_value("#oc-token input") == ""

    publish("red\nblue\ngreen", "guess", "not the admin token")
    assert visit().input_value("#oc-classes textarea") == "red\nblue"
    publish("red\ngreen", TOKEN, "Published")
    assert visit().input_value("#oc-classes textarea") == "red\ngreen"
    publish("red\nblue", TOKEN, "Published")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_fits_a_telephone(visit, pictures, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    drop(page, pictures)
    for name in ("calibration", "publishing"):
        page.click(f"#oc-{name} > button")
    page.wait_for_selector("#oc-publish")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    page.click("[data-oc=appearance]")
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "light")


def test_an_open_page_does_not_keep_the_server_from_ending(browser, tmp_path):
    with served(tmp_path) as (process, address):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("document.querySelector('#oc-classes textarea')?.value")
        assert [one.name for one in (tmp_path / "tmp").iterdir() if one.name.startswith("outclass-page-")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        page.close()
    assert list((tmp_path / "tmp").glob("outclass-*")) == []
