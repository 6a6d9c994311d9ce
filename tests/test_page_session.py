"""What stands behind the page, without a browser: sessions, cards, texts, and the fence around Gradio."""

from __future__ import annotations

import csv
import io
import re
import string
import time

import numpy as np
import pytest
from conftest import BLUE, RED, calibrated, encoded, picture

pytest.importorskip("fastapi")
from serving import PICTURES, TOKEN

from outclass import Guard
from outclass.errors import UsageError
from outclass.records import VERDICT_FIELDS, Verdict
from outclass.report.canvas import DARK, LIGHT
from outclass.serve import page_html, page_session
from outclass.serve.page_session import Encode, Pending, Seen, Session, Sessions, as_text, parse, with_thumbnail
from outclass.serve.service import ConflictError, Service
from outclass.serve.words import LANGUAGES, TEXTS, preferred, text
from outclass.words.classes import ClassName

NASTY = '<img src=x onerror=alert(1)>"&.png'


class Counting:
    """The toy encoder, counting what it is asked for."""

    def __init__(self):
        from outclass import load_encoder

        self.toy = load_encoder("toy")
        self.info, self.images, self.texts = self.toy.info, 0, 0

    def encode_images(self, pixels):
        self.images += len(pixels)
        return self.toy.encode_images(pixels)

    def encode_texts(self, texts):
        self.texts += len(texts)
        return self.toy.encode_texts(texts)


def looked_at(service, *pictures):
    """Images as an upload makes them."""
    said = service.submit(list(pictures), Encode()).answers.result(30)
    return [with_thumbnail(seen, data, 10**6) for (seen, _), (_, data) in zip(said, pictures, strict=True)]


@pytest.fixture
def service(toy_guard):
    made = Service(toy_guard)
    yield made
    made.close(10)


@pytest.fixture
def session(service):
    made = Session(service, "en")
    made.add(looked_at(service, *PICTURES.items()))
    return made


def test_verdicts_are_those_of_the_guard_most_unknown_first(session, toy_guard):
    pairs = session.verdicts()
    assert pairs[0][1].id == "green.png"
    assert [one.ood_score for _, one in pairs] == sorted((one.ood_score for _, one in pairs), reverse=True)
    for seen, verdict in pairs:
        wanted = toy_guard.check(PICTURES[verdict.id])
        assert (verdict.label, verdict.is_ood) == (wanted.label, wanted.is_ood)
        assert verdict.ood_score == pytest.approx(wanted.ood_score, abs=1e-6)
        assert seen.thumbnail.startswith(b"\xff\xd8\xff")
    session.order = "known"
    assert session.verdicts()[-1][1].id == "green.png"
    session.order = "dropped"
    assert [verdict.id for _, verdict in session.verdicts()] == list(PICTURES)


def test_an_image_that_cannot_be_read_is_a_card_with_its_reason_and_stands_last(session, service):
    session.add(looked_at(service, ("bad.png", b"no image")))
    for order in ("unknown", "known"):
        session.order = order
        pairs = session.verdicts()
        assert pairs[-1][1].id == "bad.png"
        card = page_html.cards("en", pairs)
        assert "not readable" in card
        assert page_html.shown(pairs[-1][1].error) in card
        assert "no picture" in card


def test_other_classes_are_judged_without_encoding_an_image_and_for_this_session_alone():
    encoder = Counting()
    service = Service(Guard(["red", "blue"], encoder=encoder, threshold=-0.9))
    try:
        mine, yours = Session(service, "en"), Session(service, "en")
        for one in (mine, yours):
            one.add(looked_at(service, *PICTURES.items()))
        images, texts, version = encoder.images, encoder.texts, service.served.version
        mine.set_classes("red\ngreen")
        after = {verdict.id: verdict for _, verdict in mine.verdicts()}
        assert (after["green.png"].label, after["green.png"].is_ood) == ("green", False)
        assert after["blue.png"].is_ood
        assert encoder.images == images
        assert encoder.texts > texts
        assert yours.guard.classes == service.served.guard.classes == ("red", "blue")
        assert service.served.version == version
        assert {verdict.id: verdict.is_ood for _, verdict in yours.verdicts()}["green.png"]
    finally:
        service.close(10)


@pytest.mark.parametrize(
    "bad", ["", " \n,", "red,red", "x" * 101, "a\u202eb", '"open', "\n".join(map(str, range(1001)))]
)
def test_classes_that_cannot_be_used_change_nothing(session, bad):
    before = session.guard.judge
    with pytest.raises(UsageError):
        session.set_classes(bad)
    assert session.guard.judge is before


def test_few_letters_do_not_become_many_texts(session):
    words = "; ".join(f"w{row}" for row in range(16))
    many = "\n".join(f"c{row} | {words} @ {words}" for row in range(20))  # 20 x 17 x 16
    before = session.guard.judge
    with pytest.raises(UsageError, match="5,440 names"):
        session.set_classes(many)
    assert session.guard.judge is before
    session.set_classes(many.split("\n")[0])
    assert session.guard.classes == ("c0",)


def test_a_class_name_is_never_a_file(session, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    session.set_classes(f"{tmp_path}/names.txt\nred")
    assert session.guard.classes == ("red", f"{tmp_path}/names.txt")


def test_classes_go_through_text_and_back():
    classes = [ClassName("cat", ("kitten", "tabby"), ("fluffy",)), ClassName("dog"), ClassName('a "b", c')]
    assert parse(as_text(classes)) == classes
    assert [one.name for one in parse('cat, dog\n# note\n"a, b"')] == ["cat", "dog", "a, b"]


def test_the_slider_moves_the_decision_and_the_own_threshold_comes_back(session):
    session.set_threshold(0.0)  # above all scores
    assert not any(verdict.is_ood for _, verdict in session.verdicts())
    session.set_threshold(-0.999)
    assert any(verdict.is_ood for _, verdict in session.verdicts())
    assert {verdict.threshold_source for _, verdict in session.verdicts()} == {"user"}
    session.own_threshold()
    assert {verdict.threshold for _, verdict in session.verdicts()} == {-0.9}
    with pytest.raises(UsageError):
        session.set_threshold(7.0)


def shades(count):
    generator = np.random.default_rng(0)
    colours = [np.clip(generator.integers(-25, 26, 3) + (RED if row % 2 else BLUE), 0, 255) for row in range(count)]
    return [(f"{row}.png", encoded(picture(tuple(map(int, colour))))) for row, colour in enumerate(colours)]


def test_calibration_says_how_many_images_it_takes_and_then_gives_p_values(service, monkeypatch):
    monkeypatch.setattr("outclass.known.SAME", 2.0)  # the toy's colours lie closer together than photographs do
    one, other = Session(service, "en"), Session(service, "en")
    one.add(looked_at(service, *PICTURES.items()))
    known = looked_at(service, *shades(40))
    assert one.calibrate(known[:18], 0.05) == (18, 19)
    assert one.guard.calibrated is None
    assert one.calibrate(known[18:19], 0.05) == (19, 19)
    assert one.guard.threshold.source == "calibrated"
    said = {verdict.id: verdict.p_value for _, verdict in one.verdicts()}
    assert said["green.png"] == 1 / 20  # below all 19
    assert said["red.png"] > said["green.png"]
    assert other.guard.calibrated is None
    assert one.calibrate([], 0.01) == (19, 99)
    monkeypatch.undo()
    assert other.calibrate([known[0], known[0]], 0.05) == (1, 19)  # the same image again does not count


def test_too_many_images_let_the_oldest_go_and_the_memory_is_bounded(session, service):
    many = looked_at(service, *((f"{row}.png", PICTURES["red.png"]) for row in range(page_session.SEEN)))
    assert session.add(many) == len(PICTURES)
    assert len(session.seen) == page_session.SEEN
    assert "green.png" not in {one.name for one in session.seen}
    base = many[0].vector.base
    assert base is None or len(base) == 1  # no hold on a batch


def test_the_csv_is_the_houses(session):
    rows = list(csv.DictReader(io.StringIO(session.csv().decode())))
    assert list(rows[0]) == list(VERDICT_FIELDS)
    assert [(row["id"], row["is_ood"]) for row in rows] == [
        ("red.png", "false"), ("green.png", "true"), ("blue.png", "false"),
    ]  # fmt: skip


def test_publishing_takes_the_token_and_the_version_that_the_session_began_with(session, service):
    stale = Session(service, "en")
    session.set_classes("red\ngreen")
    session.set_threshold(-0.7)
    for token, admin in (("", TOKEN), ("wrong", TOKEN), ("\ud800", TOKEN), (TOKEN, None), ("", None)):
        assert not session.publish(token, admin)
    assert service.served.guard.classes == ("red", "blue")
    assert session.publish(f" {TOKEN}\n", TOKEN)
    assert service.served.guard.classes == ("red", "green")
    assert service.served.guard.threshold.value == -0.7
    with pytest.raises(ConflictError, match="version"):
        stale.publish(TOKEN, TOKEN)


def test_a_published_threshold_survives_a_calibration(monkeypatch):
    service = Service(calibrated(monkeypatch))
    try:
        session = Session(service, "en")
        session.set_threshold(-0.5)
        assert session.publish(TOKEN, TOKEN)
        assert (service.served.guard.threshold.value, service.served.guard.threshold.source) == (-0.5, "user")
        session.set_classes("red\nblue\ngreen")
        assert session.guard.threshold.value == -0.5
    finally:
        service.close(10)


def test_tickets_are_handed_out_once_and_forgotten_after_a_while(monkeypatch):
    pending = Pending()
    first, second = pending.put([Seen("a")]), pending.put([Seen("b"), Seen("c")])
    assert first != second
    assert pending.take("nothing ../../etc/passwd") == []
    assert [one.name for one in pending.take(f"{second} {first}")] == ["b", "c", "a"]
    assert pending.take(first) == []
    old = pending.put([Seen("d")])
    monkeypatch.setattr(page_session, "WAIT", -1.0)
    pending.put([Seen("e")])
    assert pending.take(old) == []
    monkeypatch.setattr(page_session, "WAIT", 60.0)
    tickets = [pending.put([Seen("f")]) for _ in range(page_session.PENDING + 1)]
    assert pending.take(tickets[0]) == []
    assert pending.take(tickets[-1])


def test_sessions_are_apart_bounded_and_end(service, monkeypatch):
    sessions = Sessions(service)
    mine = sessions.get("a", "zh")
    assert sessions.get("a") is mine
    assert sessions.get("b") is not mine
    sessions.end("a")
    assert sessions.get("a") is not mine
    for row in range(page_session.SESSIONS + 5):
        sessions.get(str(row))
    assert len(sessions) == page_session.SESSIONS
    monkeypatch.setattr(page_session, "IDLE", -1.0)
    time.sleep(0.01)
    sessions.get("last")
    assert len(sessions) == 1


def test_all_sessions_together_hold_so_many_bytes(service, monkeypatch):
    sessions = Sessions(service)
    seen = looked_at(service, *PICTURES.items())
    assert sessions.get("0").held == 0
    for row in range(6):
        sessions.get(str(row)).add(seen)
    size = sessions.get("5").held
    assert size >= sum(len(one.thumbnail) + one.vector.nbytes for one in seen)
    sessions.get("4").set_classes("red\ngreen\nblue")
    assert sessions.get("4").held > size
    sessions.get("5")
    monkeypatch.setattr(page_session, "HELD", 3 * size)
    mine = sessions.get("5")
    assert 1 < len(sessions) <= 3
    assert mine.seen == seen
    mine.clear()
    assert mine.held == 0
    mine.calibrate(seen, 0.05)
    assert mine.held == size
    monkeypatch.setattr(page_session, "HELD", 0)
    assert sessions.get("5") is mine
    assert len(sessions) == 1


# What is shown


def test_what_people_send_is_escaped(session, service):
    session.add(looked_at(service, (NASTY, PICTURES["green.png"]), ("turned\u202egnp.png", b"<b>broken</b>")))
    session.guard.judge = Guard(["red", "<script>blue</script>"], encoder="toy", threshold=-0.9).judge
    html = page_html.cards("en", session.verdicts()) + page_html.status(NASTY) + page_html.shown(NASTY)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert "&lt;img src=x" in html


def test_the_bar_and_the_words_say_the_same(session):
    for seen, verdict in session.verdicts():
        card = page_html.cards("en", [(seen, verdict), *session.verdicts()])
        card = card[: card.index("</li>")]
        mark, limit = (float(re.search(rf'{one}="([\d.]+)%"', card)[1]) for one in ("cx", "x1"))
        assert (mark > limit) == verdict.is_ood
        assert ("oc-ood" in card) == verdict.is_ood
        assert ("looks like" in card) == bool(verdict.is_ood and verdict.nearest_negative)


def test_the_histogram_names_its_numbers(session):
    said = [verdict for _, verdict in session.verdicts()]
    svg = page_html.chart("en", said, -0.9)
    assert "2 known, 1 unknown; the threshold is -0.9." in svg
    assert "stroke-dasharray" in svg
    assert "stroke-dasharray" not in page_html.chart("en", [Verdict("a", "red", 0.5, -0.5)], None)
    assert "<svg" not in page_html.chart("en", [], -0.9)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_letters_can_be_read_on_their_ground(colours):
    for ink in ("ink", "soft", "id", "ood"):
        for ground in ("page", "card") if ink in ("id", "ood") else ("page", "card", "well", "note"):
            light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_both_languages_say_everything_with_the_same_values():
    assert set(TEXTS) == set(LANGUAGES)
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key in TEXTS["en"]:
        fields = [{name for _, name, _, _ in string.Formatter().parse(TEXTS[one][key]) if name} for one in TEXTS]
        assert fields[0] == fields[1], key
    for key, said in TEXTS["zh"].items():
        assert re.search(r"[\u4e00-\u9fff]", said), key
    assert text("xx", "known") == "known"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [("", "en"), ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en;q=0.2, zh;q=0.7", "zh"), ("fr,en", "en"), ("fr", "en"),
     ("zh;q=0,en;q=0.1", "en"), ("zh;q=x", "en"), ("ZH-hant", "zh")],
)  # fmt: skip
def test_the_browsers_language_is_the_first(header, wanted):
    assert preferred(header) == wanted
