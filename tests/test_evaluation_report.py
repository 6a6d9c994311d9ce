"""The evaluation page: every number is right and has its n, nothing escapes or is fetched, the pictures are saved."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import HOSTILE, Parsed, photograph, thumbnails

from outclass.decide.metrics import measure
from outclass.errors import UsageError
from outclass.records import Verdict
from outclass.report.canvas import DARK, LIGHT
from outclass.report.conventions import CONVENTIONS
from outclass.report.evaluation import EvaluationPage
from outclass.report.html import HtmlReport
from outclass.report.results import ALARM, MISSED, CalibrationCheck, ClassAlarms, Mistake, Result

ASKED = np.array([0.01, 0.05, 0.1])
CHECK = CalibrationCheck(ASKED, ASKED * 1.2, ASKED / 2, ASKED * 2, 300, 700)
ALARMS = ClassAlarms(["cat", "dog", "emu"], np.array([0.1, 0.4, 0.0]), np.array([20, 10, 0]))
SUMMARY = {
    "command": "outclass eval --id pets --ood textures",
    "started": "2026-03-01T12:30:05+00:00",
    "outclass": "0.1.0",
    "encoder": {"name": "lite", "fingerprint": "sha256:0123abcd"},
    "classes": ["cat", "dog", "emu"],
}


def scores(n: int, middle: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, 0.05, n).astype(np.float32)


def result(detector: str = "maxlogit", ood_set: str = "textures", gap: float = 0.1, **changes: Any) -> Result:
    known, unknown = scores(200, -0.3), scores(80, -0.3 + gap, 1)
    given = {"threshold": -0.22, "threshold_source": "calibrated"} if detector == "maxlogit" else {}
    fields = {"id_scores": known, "ood_scores": unknown, "metrics": measure(known, unknown).to_dict()}
    return Result(detector, ood_set, **{**fields, **given, **changes})


def mistake(image_id: str, score: float, error: Any = ALARM) -> Mistake:
    return Mistake(image_id, error, "dog" if error == ALARM else "textures", "cat", score)


def results() -> list[Result]:
    return [result(), result(ood_set="places", gap=0.05), result("mcm", gap=0.05), result("mcm", "places", 0.02)]


def page(found: list[Result] | None = None, detector: str = "maxlogit", **options: Any) -> str:
    return EvaluationPage(results() if found is None else found, detector, **options).render()


def everything(**changes: Any) -> str:
    options: dict[str, Any] = {
        "notes": {"textures": "LAION may hold them"},
        "class_alarms": ALARMS,
        "calibration": CHECK,
        "mistakes": [mistake("a/b.jpg", -0.1), mistake("c.jpg", -0.4, MISSED)],
        "find": lambda _: photograph((60, 40)),
        "summary": SUMMARY,
    }
    return page(**options | changes)


def shown_ids(html: str) -> list[str | None]:
    return [attributes["title"] for attributes in Parsed(html).all("bdi", "name")]


def table(html: str, title: str) -> dict[str, list[str]]:
    """Rows of a metric's table: detector -> cells, the best between stars."""
    part = html[html.index(f"<caption>{title}") :]
    rows = re.findall(r'<th scope="row"><bdi>(.*?)</bdi></th>(.*?)</tr>', part[: part.index("</table>")], re.S)
    return {
        name.replace("<wbr>", ""): [
            re.sub("</?b>", "*", cell) for cell in re.findall(r'<td class="n">(.*?)</td>', cells)
        ]
        for name, cells in rows
    }


# --- numbers ------------------------------------------------------------------------------------------------------


def test_table_holds_every_value_and_its_mean() -> None:
    found = results()
    rows = table(page(found), "AUROC")
    assert list(rows) == ["maxlogit", "mcm"]  # the better one first
    for name, (one, two) in zip(rows, (found[:2], found[2:]), strict=True):
        values = [each.metrics["auroc"] for each in (one, two)]
        cells = [float(cell.strip("*")) for cell in rows[name]]
        np.testing.assert_allclose(cells, [*values, np.mean(values)], atol=5e-4)


def test_best_is_the_highest_or_the_lowest_as_the_metric_has_it() -> None:
    html = page()
    for metric, convention in CONVENTIONS.items():
        if metric not in results()[0].metrics:
            continue
        rows = table(html, convention.title)
        ours, theirs = ([float(cell.strip("*")) for cell in rows[name]] for name in ("maxlogit", "mcm"))
        for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            better = "maxlogit" if (one > two) == convention.high else "mcm"
            if one != two:
                assert [name for name in rows if rows[name][i].startswith("*")] == [better], (metric, i)


def test_a_detector_that_lacks_a_set_has_no_mean() -> None:
    rows = table(page(results()[:3]), "AUROC")
    assert rows["mcm"][1:] == ["–", "–"]
    assert rows["maxlogit"][2] != "–"


def test_equal_values_are_not_called_best() -> None:
    rows = table(page([result(), result("mcm")]), "AUROC")
    assert rows["maxlogit"] == rows["mcm"]
    assert "*" not in rows["mcm"][0]


def test_every_metric_is_explained() -> None:
    parsed = Parsed(page())
    for metric in results()[0].metrics:
        if metric not in ("n_id", "n_ood"):
            assert f"{CONVENTIONS[metric].title} {CONVENTIONS[metric].line}" in parsed.text
    unknown = Parsed(page([result(metrics={"my own figure": 0.123})])).text
    assert "my own figure not described here." in unknown
    assert "0.123" in unknown


def test_at_the_threshold() -> None:
    known, unknown = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.3, 0.35, 0.5, 0.6, 0.7])
    html = page([Result("a", "b", known, unknown, {}, 0.3, "user")], "a")
    text = Parsed(html).text
    assert "0.3 (user) 25.0 % 80.0 % 80.0 % of 5" in text
    assert "a on b" in text
    assert "b: n = 5 OOD" in text
    without = Parsed(page([Result("a", "b", known, unknown, {})], "a")).text
    assert "There is no threshold" in without
    assert "outclass calibrate" in without


def test_numbers_carry_n() -> None:
    html = everything()
    text = Parsed(html).text
    assert "200 ID images" in text or "ID images 200" in text
    assert "ID images: n = 200 in every number" in text
    assert text.count("n = 80") >= 6
    assert "40.0 % of 10" in text
    assert "30 images" not in text
    assert "13.3 %" not in text
    assert "all classes: 20.0 % of 30" in text
    assert "n = 300" in text
    assert "n = 700" in text


def test_marked_sets_are_marked_in_tables_and_pictures() -> None:
    html = everything()
    text = Parsed(html).text.replace("\u00a0", " ")
    assert "textures *: LAION may hold them" in text
    named = re.findall(r"textures(?: \*)?", text.replace("is from textures", "").replace(SUMMARY["command"], ""))  # type: ignore[arg-type]
    rows = "OOD taken for ID textures cat"  # of the mistakes, which say where an image is from
    assert named.count("textures") == text.count(rows)
    assert named.count("textures *") > 10
    assert "places *" not in text
    assert "*:" not in Parsed(page()).text


def test_names_alike_after_shortening_stay_apart() -> None:
    one, two = (f"{'x' * 40}{i}{'y' * 40}" for i in range(2))
    html = page([result(ood_set=one), result(ood_set=two, gap=0.02)])
    assert len(set(re.findall(r"x+…y+ \(\d\): AUROC", html))) == 2


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_most_confident_mistakes_come_first() -> None:
    order = np.random.default_rng(0).permutation(60)
    given = [mistake(f"alarm{i:02}", i / 100) for i in order] + [
        mistake(f"missed{i:02}", i / 100, MISSED) for i in order
    ]
    asked: list[str] = []

    def find(image_id: str) -> Image.Image:
        asked.append(image_id)
        return photograph((8, 8))

    html = page(mistakes=given, find=find)
    wanted = [f"missed{i:02}" for i in range(24)] + [f"alarm{i:02}" for i in range(59, 35, -1)]
    assert shown_ids(html) == wanted
    assert asked == wanted
    assert len(thumbnails(html)) == 48
    text = Parsed(html).text
    assert "OOD taken for ID 24 of 60" in text
    assert "ID called OOD 24 of 60" in text
    listed = text[text.index("All of them as a table") :]
    assert len(re.findall(r"(?:alarm|missed)\d\d (?:ID called OOD|OOD taken for ID)", listed)) == 120


def test_which_mistake_it_is() -> None:
    html = page(mistakes=[mistake("a.jpg", -0.1), mistake("b.jpg", -0.4, MISSED)])
    text = Parsed(html).text
    assert "ID cat ood_score -0.4 is from textures b.jpg" in text
    assert "OOD ood_score -0.1 is dog nearest cat a.jpg" in text
    assert "<img" not in html


def test_a_picture_that_cannot_be_read_is_said_to_be_missing() -> None:
    html = page(
        mistakes=[mistake("a.jpg", -0.1), mistake("b.jpg", -0.2)], find=lambda name: b"x" if name[0] == "a" else None
    )
    assert html.count("<span>no picture</span>") == 2


# --- a page that stands alone -------------------------------------------------------------------------------------


def test_page_of_ten_thousand_images_is_small() -> None:
    known, unknown = scores(10_000, -0.3), scores(10_000, -0.2, 1)
    found = [
        Result(f"detector {i}", f"set {j}", known, unknown, measure(known, unknown).to_dict(), -0.25, "user")
        for i in range(12)
        for j in range(4)
    ]
    given = [mistake(f"{'päth/' * 300}{i}.jpg", i / 1e4, (ALARM, MISSED)[i % 2]) for i in range(10_000)]
    names = [f"class {i}" for i in range(1000)]
    html = page(
        found, "detector 0", mistakes=given, find=lambda _: photograph((300, 300)), calibration=CHECK,
        class_alarms=ClassAlarms(names, np.full(1000, 0.1), np.full(1000, 10)), summary={"classes": names},
    )  # fmt: skip
    assert len(html.encode()) < 5_000_000  # of noise, which compresses worse than any photograph
    assert "The most confident 4,000 of 10,000 are listed." in Parsed(html).text


def test_page_asks_nobody_for_anything() -> None:
    html = everything()
    parsed = Parsed(html)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert not [url for url in re.findall(r"url\(([^)]*)\)", html) if not url.startswith("#")]
    assert "@import" not in html
    assert not parsed.all("script")
    policy = next(found["content"] for found in parsed.all("meta") if "http-equiv" in found)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text() -> None:
    plain = Parsed(everything())
    tags = {tag for tag, _ in plain.tags} | {"wbr"}
    attributes = {name for _, found in plain.tags for name in found}
    for text in HOSTILE:
        found = [result(text, text, threshold=-0.22), result("mcm", text), result("mcm", "b")]
        html = page(
            found, text, notes={text: text}, class_alarms=ClassAlarms([text], np.array([0.5]), np.array([4])),
            mistakes=[Mistake(text, ALARM, text, text, 0.5), Mistake(text, MISSED, text, text, 0.1)],
            find=lambda _: photograph((8, 8)),
            summary={"command": text, "started": text, "outclass": text, "classes": [text], "encoder": {"name": text}},
        )  # fmt: skip
        html.encode("utf-8")
        parsed = Parsed(html)
        assert {tag for tag, _ in parsed.tags} <= tags
        assert {name for _, each in parsed.tags for name in each} <= attributes
        if text.isprintable() and len(text) < 64:
            assert text in parsed.text
        for svg in re.findall(r"<svg xmlns.*?</svg>", html, re.S):
            ElementTree.fromstring(svg)


def test_every_picture_has_words_and_every_id_is_used_once() -> None:
    html = everything()
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    parsed = Parsed(html)
    for found in parsed.all("svg"):
        labels = str(found["aria-labelledby"]).split()
        assert len(labels) == 2
        assert set(labels) <= set(ids)
    for found in parsed.all("section"):
        assert found["aria-labelledby"] in ids
    assert all(found.get("alt") for found in parsed.all("img"))
    # what scrolls sideways can be reached and scrolled by the keyboard, in the order of the page
    regions = parsed.all("div", "scroll")
    assert regions
    assert all(found["tabindex"] == "0" and found["role"] == "region" and found["aria-label"] for found in regions)
    assert not [found for _, found in parsed.tags if int(found.get("tabindex") or 0) > 0]


def test_pictures_come_for_screens_and_for_telephones() -> None:
    html = everything()
    broad, slim = (re.findall(rf'<div class="{kind}"><svg[^>]* width="(\d+)"', html) for kind in ("broad", "slim"))
    assert len(broad) == len(slim) == 2 + 2 + 2 + 2  # histograms, curves, curves by set, classes and calibration
    assert set(broad) == {"520"}
    assert set(slim) == {"344"}


def test_both_pages_have_the_same_colours() -> None:
    for html in (page(), HtmlReport().render({})):
        light, dark = html[html.index(":root") :].split("@media (prefers-color-scheme: dark)")[:2]
        for style, colours in ((light, LIGHT), (dark[: dark.index("}\n}")], DARK)):
            assert dict(re.findall(r"--([\w-]+): (#\w+);", style)) == colours


def test_what_scrolls_sideways_shows_it_light_and_dark() -> None:
    html = everything()
    (rule,) = re.findall(r"\n\.scroll \{(.*?)\}", html, re.S)
    assert "overflow-x: auto" in rule
    layers = re.findall(r"(?:linear|radial)-gradient\(([^;]*?)\) (left|right) / (\d+)px 100% no-repeat (\w+)", rule)
    covers = {side: (colours, int(size)) for colours, side, size, kind in layers if kind == "local"}
    shadows = {side: (colours, int(size)) for colours, side, size, kind in layers if kind == "scroll"}
    # the covers move with the table and come first: they lie over the shadows, which they hide where nothing is left
    assert [kind for *_, kind in layers] == ["local", "local", "scroll", "scroll"]
    assert covers.keys() == shadows.keys() == {"left", "right"}
    for side in covers:
        assert "var(--page) 50%" in covers[side][0]
        assert "var(--soft)" in shadows[side][0]
        assert covers[side][1] / 2 >= shadows[side][1]
    assert not re.search(r"#[0-9a-f]{3}|rgb", rule)


def test_names_of_sets_break_after_underscores_only() -> None:
    name = "imagenet1k_near200"
    found = [result(ood_set=name), result(ood_set="textures"), result("mcm", name), result("mcm")]
    html = page(found, notes={name: "seen"}, mistakes=[Mistake("a.jpg", MISSED, name, "cat", -0.4)])
    written = re.findall(r"<(?:bdi|dd dir=\"auto\")>(imagenet1k.*?)</", html)
    tables = len(re.findall(r'<th scope="col">Detector', html))
    assert len(written) == tables + 4  # the table of the threshold, the mistake, and the note, which is there twice
    assert {each.removesuffix("\u00a0*") for each in written} == {"imagenet1k_<wbr>near200"}
    assert "th bdi { overflow-wrap: break-word; }" in html  # "anywhere" would make columns narrower than a word


def test_a_rejection_at_the_false_discovery_rate_is_shown_on_its_card() -> None:
    for rejected, shown in ((True, ["yes"]), (False, []), (None, [])):
        report = HtmlReport()
        report.add(Verdict("a.jpg", label="cat", similarity=0.25, ood_score=-0.1, p_value=0.01, fdr_rejected=rejected))
        rows = re.findall(r'<div><dt>(\w+)</dt><dd class="n">(.*?)</dd></div>', report.render({}))
        assert [value for name, value in rows if name == "fdr_rejected"] == shown
        assert "p_value" in dict(rows)


def test_deterministic() -> None:
    assert everything() == everything()


# --- files --------------------------------------------------------------------------------------------------------


def test_pictures_are_saved(tmp_path) -> None:
    view = EvaluationPage(
        [result(), result(ood_set="Places 365/<b>", gap=0.05), result("mcm")], "maxlogit", class_alarms=ALARMS,
        calibration=CHECK, mistakes=[mistake("a.jpg", -0.1), mistake("b.jpg", -0.4, MISSED)],
        find=lambda _: photograph((60, 40)),
    )  # fmt: skip
    paths = view.save_plots(tmp_path / "plots")
    names = [
        "scores-1-textures", "scores-2-places-365-b", "roc", "precision-recall", "roc-1-textures",
        "roc-2-places-365-b", "false-alarms", "calibration", "mistakes-ood-taken-for-id", "mistakes-id-called-ood",
    ]  # fmt: skip
    assert [path.name for path in paths] == [f"{name}.{ending}" for name in names for ending in ("svg", "png")]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_text("utf-8"))
        else:
            with Image.open(path) as image:
                assert image.width == 1440


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "at least one OOD set, got none"),
        ([result(), result()], "given twice"),
        ([result("mcm")], "results of mcm only"),
        ([result(), result("mcm", ood_scores=scores(79, 0))], "79 OOD scores and earlier ones 80"),
        ([result(), result(ood_set="b", id_scores=scores(199, 0))], "199 ID scores and earlier ones 200"),
        ([result(ood_scores=np.array([]))], "finite OOD scores"),
        ([result(id_scores=np.array([0.1, np.nan]))], "1 finite numbers"),
        ([result(id_scores=np.zeros((3, 1)))], r"shape \(3, 1\)"),
    ],
)
def test_refused(found: list[Result], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EvaluationPage(found, "maxlogit")
