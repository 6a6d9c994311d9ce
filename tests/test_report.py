"""The HTML page: nothing escapes, nothing is fetched, nothing is lost, whatever the verdicts hold."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from outclass.records import Verdict
from outclass.report.html import HtmlReport

SUMMARY: dict[str, Any] = {
    "outclass": "0.1.0",
    "command": "outclass scan photos --classes cat,dog",
    "source": "photos",
    "classes": ["cat", "dog"],
    "templates": ["a photo of a {}"],
    "encoder": {"name": "lite", "fingerprint": "sha256:0123abcd"},
    "detector": {"name": "maxlogit", "title": "MaxLogit", "params": {"temperature": 1.0}},
    "threshold": -0.2,
    "threshold_source": "user",
    "images": 0,
    "ignored": 3,
    "seconds": 75.0,
    "images_per_second": 28.5,
    "started": "2026-03-01T12:30:05+00:00",
}
NO_THRESHOLD = SUMMARY | {"threshold": None, "threshold_source": None}

HOSTILE = [
    "<img onerror=alert(1)>.jpg",
    "</title></style><svg/onload=alert(1)>",
    "\" onmouseover='alert(1)' x=\".png",
    "new\nline\r\t\0.jpg",
    "x" * 5000 + ".jpg",
    "\u202egpj.exe",
    "שלום.jpg",
    "👩\u200d👩\u200d👧.jpg",
    "undecodable\udcff.jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
]


def judged(image_id: str, score: float, threshold: float | None = -0.2, label: str = "cat") -> Verdict:
    return Verdict(
        id=image_id,
        label=label,
        similarity=0.25,
        ood_score=score,
        threshold=threshold,
        threshold_source=None if threshold is None else "user",
        is_ood=None if threshold is None else score > threshold,
    )


def page(verdicts: Iterable[Verdict], summary: dict[str, Any] = SUMMARY, **options: Any) -> str:
    report = HtmlReport(**options)
    for verdict in verdicts:
        report.add(verdict)
    return report.render(summary)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "wbr":
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str, css_class: str | None = None) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]


def shown_ids(html: str) -> list[str | None]:
    return [attributes["title"] for attributes in Parsed(html).all("bdi", "name")]


def photograph(size: tuple[int, int] = (640, 320), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def thumbnails(html: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)]


# --- hostile text ---------------------------------------------------------------------------------------------


def test_hostile_text_stays_text() -> None:
    plain = Parsed(page([judged("a.jpg", -0.1), judged("b.jpg", -0.3), Verdict("c.jpg", error="broken")]))
    allowed = {tag for tag, _ in plain.tags} | {"img", "wbr", "details", "summary"}
    attributes = {name for _, found in plain.tags for name in found} | {"src", "alt"}
    for text in HOSTILE:
        words = {"classes": [text], "command": text, "source": text, "templates": [text], "started": text}
        verdicts = [judged(text, -0.1, label=text), judged(text, -0.3, label=text), Verdict(text, error=text)]
        html = page(verdicts, SUMMARY | words, find=lambda _: photograph((8, 8)))
        html.encode("utf-8")
        parsed = Parsed(html)
        assert {tag for tag, _ in parsed.tags} <= allowed
        assert {name for _, found in parsed.tags for name in found} <= attributes
        assert len(html) < 150_000


def test_hostile_name_is_readable() -> None:
    parsed = Parsed(page([judged(HOSTILE[0], -0.1), Verdict(HOSTILE[1], error=HOSTILE[0])]))
    assert HOSTILE[0] in parsed.text
    assert HOSTILE[1] in parsed.text
    assert HOSTILE[0] in {attributes.get("title") for attributes in parsed.all("bdi")}


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("new\nline.jpg", "new\\nline.jpg"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("bad\udcff.jpg", "bad\\udcff.jpg"),
        ("👩\u200d👧.jpg", "👩\u200d👧.jpg"),
        ("שלום.jpg", "שלום.jpg"),
    ],
)
def test_invisible_characters_are_shown(name: str, seen: str) -> None:
    html = page([judged(name, -0.1)])
    assert shown_ids(html) == [seen]
    assert seen in Parsed(html).text
    if name != seen:
        assert name not in html


def test_long_name_is_shortened_and_kept_in_the_title() -> None:
    name = "folder/" + "y" * 300 + ".jpg"
    html = page([judged(name, -0.1)])
    assert shown_ids(html) == [name]
    assert name not in Parsed(html).text
    assert "y.jpg" in Parsed(html).text


# --- a page that stands alone -----------------------------------------------------------------------------------


def test_page_asks_nobody_for_anything() -> None:
    verdicts = [judged("a.jpg", -0.1), judged("https://example.com/b.jpg", -0.3), Verdict("c.jpg", error="x")]
    html = page(verdicts, find=lambda _: photograph())
    parsed = Parsed(html)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not [url for url in re.findall(r"url\(([^)]*)\)", html) if not url.startswith("#")]
    assert "@import" not in html
    assert not parsed.all("script")
    policy = next(found["content"] for found in parsed.all("meta") if "http-equiv" in found)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_page_is_small_and_memory_bounded() -> None:
    find = {f"{i}.jpg": photograph((300, 300), i) for i in range(120)}
    report = HtmlReport(lambda image_id: find[f"{int(image_id[:-4]) % 120}.jpg"])
    for i in range(10_000):
        report.add(judged(f"{i}.jpg", (i * 7919 % 10_000) / 1e4 - 0.5, label=f"class {i % 1000}"))
        report.add(Verdict(f"{i}.jpg", error="OSError: " + "z" * 50_000))
    html = report.render(SUMMARY | {"classes": [f"class {i}" for i in range(1000)]})
    assert len(html.encode()) < 5_000_000  # of noise, which compresses worse than any photograph
    assert len(thumbnails(html)) == 120
    assert "The first 200 of 10,000 are listed." in Parsed(html).text


def test_deterministic() -> None:
    verdicts = [judged(f"{i}.jpg", -0.2 + (i % 5 - 2) / 50) for i in range(300)]
    assert page(verdicts, find=lambda _: photograph()) == page(verdicts, find=lambda _: photograph())


def test_render_does_not_close_the_report() -> None:
    report = HtmlReport()
    report.add(judged("a.jpg", -0.1))
    report.render(SUMMARY)
    report.add(judged("b.jpg", -0.3))
    assert shown_ids(report.render(SUMMARY)) == ["a.jpg", "b.jpg"]


# --- thumbnails ---------------------------------------------------------------------------------------------------


def test_thumbnails_are_upright_small_and_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "SECRET description"
    exif.get_ifd(0x8825)[1] = "SECRET"
    buffer = io.BytesIO()
    photograph((640, 320)).save(buffer, "JPEG", exif=exif, comment=b"SECRET comment", icc_profile=b"SECRET profile")
    assert buffer.getvalue().count(b"SECRET") >= 3
    (data,) = thumbnails(page([judged("a.jpg", -0.1)], find=lambda _: buffer.getvalue()))
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert thumbnail.size == (80, 160)
        assert not thumbnail.getexif()
    assert b"SECRET" not in data
    assert b"Exif" not in data


def test_caller_image_is_left_alone() -> None:
    image = photograph((640, 320))
    image.info["comment"] = "mine"
    page([judged("a.jpg", -0.1)], find=lambda _: image)
    assert image.size == (640, 320)
    assert image.info == {"comment": "mine"}


def test_without_pictures() -> None:
    assert not Parsed(page([judged("a.jpg", -0.1)])).all("img")


@pytest.mark.parametrize("source", [None, b"no image", "/no/such/file.jpg"])
def test_image_that_is_gone(source: bytes | str | None) -> None:
    parsed = Parsed(page([judged("a.jpg", -0.1)], find=lambda _: source))
    assert not parsed.all("img")
    assert "no picture" in parsed.text


def test_source_that_is_gone() -> None:
    def find(_: str) -> bytes:
        raise FileNotFoundError("the archive was moved")

    assert "no picture" in Parsed(page([judged("a.jpg", -0.1)], find=find)).text


def test_pictures_have_alt_texts() -> None:
    parsed = Parsed(page([judged("a.jpg", -0.1)], find=lambda _: photograph()))
    assert [attributes["alt"] for attributes in parsed.all("img")] == ["Thumbnail of a.jpg"]


def test_only_shown_images_are_read_again() -> None:
    asked: list[str] = []
    page([judged(f"{i}.jpg", -i / 100) for i in range(50)], find=lambda name: asked.append(name), shown=9)
    assert len(asked) == 9


# --- order and groups -----------------------------------------------------------------------------------------


def test_sorted_from_most_ood_to_most_id() -> None:
    scores = np.random.default_rng(0).permutation(100)
    html = page([judged(f"{score:03}", score / 100) for score in scores])
    assert shown_ids(html) == [f"{score:03}" for score in range(99, -1, -1)]


def test_equal_scores_keep_the_scan_order() -> None:
    names = ["b", "a", "d", "c"]
    assert shown_ids(page([judged(name, -0.1) for name in names])) == names


def test_groups_when_not_all_are_shown() -> None:
    order = np.random.default_rng(0).permutation(100)
    html = page([judged(str(i), i / 100, threshold=0.605) for i in order], SUMMARY | {"threshold": 0.605}, shown=10)
    assert shown_ids(html) == ["99", "98", "97", "96", "62", "61", "60", "2", "1", "0"]
    text = Parsed(html).text
    assert text.index("Most OOD 4") < text.index("Nearest to the threshold 3") < text.index("Most ID 3")
    assert "10 of 100 are shown." in text


def test_groups_without_a_threshold() -> None:
    html = page([judged(str(i), i / 100, None) for i in range(100)], NO_THRESHOLD, shown=5)
    assert shown_ids(html) == ["99", "98", "97", "1", "0"]
    assert "Nearest to the threshold" not in html


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_no_row_is_shown_twice(threshold: float) -> None:
    html = page([judged(str(i), i / 100, threshold) for i in range(100)], SUMMARY | {"threshold": threshold}, shown=12)
    assert len(set(shown_ids(html))) == len(shown_ids(html)) == 12


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_few_cards(shown: int) -> None:
    assert len(shown_ids(page([judged(str(i), i / 10) for i in range(9)], shown=shown))) == shown


# --- words --------------------------------------------------------------------------------------------------------


def headline(html: str) -> str:
    found = re.search(r"<h1[^>]*>(.*?)</h1>", html)
    assert found
    return found.group(1)


@pytest.mark.parametrize(
    ("scores", "failed", "expected"),
    [
        ([], 0, "No images were found"),
        ([], 1, "The one image could not be read"),
        ([], 5, "None of the 5 images could be read"),
        ([-0.1], 0, "The one image belongs to none of: cat, dog"),
        ([-0.3], 0, "The one image belongs to one of: cat, dog"),
        ([-0.3], 2, "The one image that could be read belongs to one of: cat, dog"),
        ([-0.1, -0.3, -0.3], 0, "1 of 3 images belongs to none of: cat, dog"),
        ([-0.1, -0.1, -0.3], 4, "2 of 3 images belong to none of: cat, dog"),
        ([-0.1, -0.1], 0, "All 2 images belong to none of: cat, dog"),
        ([-0.2, -0.2], 0, "All 2 images belong to one of: cat, dog"),
    ],
)
def test_headline(scores: list[float], failed: int, expected: str) -> None:
    verdicts = [judged(str(i), score) for i, score in enumerate(scores)]
    html = page(verdicts + [Verdict(f"f{i}", error="broken") for i in range(failed)])
    assert headline(html) == expected


def test_headline_names_few_classes() -> None:
    html = page([judged("a", -0.1)], SUMMARY | {"classes": [f"c{i}" for i in range(1000)]})
    assert headline(html) == "The one image belongs to none of: c0, c1, c2, c3, c4, c5 and 994 more"


def test_without_threshold_the_page_says_how_to_get_one() -> None:
    html = page([judged("a.jpg", -0.1, None), judged("b.jpg", -0.3, None)], NO_THRESHOLD)
    text = Parsed(html).text
    assert headline(html) == "2 images were scored against: cat, dog"
    assert "There is no threshold" in text
    assert "--threshold" in text
    assert not Parsed(html).all("line", "threshold")
    assert "no decision: 2" in text
    assert not Parsed(html).all("span", "is-id")


def test_failures_are_listed_with_reasons() -> None:
    text = Parsed(page([judged("a.jpg", -0.1), Verdict("bad.jpg", error="OSError: cut short")])).text
    assert "bad.jpg OSError: cut short" in text
    assert "1 file could not be read" in text


def test_class_table_adds_up() -> None:
    verdicts = [judged("a", -0.1), judged("b", -0.3), judged("c", -0.3, label="dog"), Verdict("d", error="x")]
    html = page(verdicts, SUMMARY | {"classes": ["cat", "dog", "emu"]})
    rows = re.findall(r'<tr><th scope="row"[^>]*>(\w+)</th>\s*<td class="n">(\d+)</td><td class="n">(\d+)</td>', html)
    assert rows == [("cat", "1", "1"), ("dog", "1", "0"), ("emu", "0", "0")]


def test_how_it_was_made() -> None:
    text = Parsed(page([judged("a.jpg", -0.1)])).text
    for part in (
        "sha256:0123abcd",
        "MaxLogit",
        "temperature = 1.0",
        "a photo of a {}",
        SUMMARY["command"],
        "1 min 15 s",
    ):
        assert part in text


def test_similarity_is_not_called_confidence() -> None:
    html = page([judged("a.jpg", -0.1)])
    assert "confidence" not in html.lower()
    assert "cosine" in html


def test_missing_keys_and_nothing_at_all() -> None:
    assert "No images were found" in page([], {})
    assert "above -0.2" in Parsed(page([judged("a.jpg", -0.1)], {})).text


def test_negative_and_p_value_are_shown() -> None:
    verdict = Verdict("a", "cat", 0.2, -0.1, -0.2, "calibrated", True, 0.0125, "teapot")
    text = Parsed(page([verdict])).text
    assert "looks like teapot" in text
    assert "p_value 0.0125" in text
