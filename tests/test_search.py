"""outclass.search and its command: the nearest images first, exact or not, on request OOD ones only."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, picture, run, save_picture, shared_data, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Guard, ImageError, MismatchError, NotReadyError, UsageError
from outclass.encoders.toy import ToyEncoder
from outclass.index import Index, build, table
from outclass.index.writer import Stamp, Writer
from outclass.report.contact import contact_sheet
from outclass.search import Hit, beyond_nouns, search

pytest.importorskip("lancedb")

TOY = ToyEncoder()


def reds(count):
    """(id, picture) from pure red to pure blue."""
    return [(f"{row:03}", picture((255 - row * 250 // count, 0, row * 250 // count))) for row in range(count)]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """An index of 40 pictures from red to blue, one green, one unread, one gone."""
    path = tmp_path_factory.mktemp("colours") / "x.lance"
    images = [*reds(40), ("green", picture(GREEN)), ("broken", b"no picture"), ("gone", picture((255, 0, 0)))]
    build(images, path, TOY)
    build(images[:-1], path, TOY)
    return Index(path)


def ready(path, vectors, ids=None):
    """An index of vectors that are there already."""
    with Writer(path, TOY.info) as writer:
        names = ids or [f"{row:06}" for row in range(len(vectors))]
        writer.append([(name, Stamp(width=1, height=1), None) for name in names], vectors)
        writer.tidy()
    return Index(path)


def test_words_find_the_images_that_show_them(colours):
    hits = search(colours, "red", TOY, k=3)
    assert {hit.id for hit in hits} <= {f"00{row}" for row in range(8)}
    assert hits[0].similarity > 0.99
    assert [hit.id for hit in search(colours, "green", TOY, k=1)] == ["green"]
    assert int(search(colours, "blue", TOY, k=1)[0].id) > 30


def test_an_image_finds_itself_first(colours):
    hits = search(colours, picture((0, 0, 250 - 250 // 40)), TOY, k=41)
    order = [hit.similarity for hit in hits]
    assert order == sorted(order, reverse=True)
    assert hits[0].similarity > hits[-1].similarity + 0.5
    first = search(colours, reds(40)[17][1], TOY, k=1)[0]
    assert (first.id, round(first.similarity, 5), first.width, first.height) == ("017", 1.0, 24, 20)


def test_neither_what_is_gone_nor_what_was_not_read_is_found(colours):
    found = {hit.id for hit in search(colours, "red", TOY, k=100)}
    assert found == {f"{row:03}" for row in range(40)} | {"green"}


def test_a_condition_holds_for_what_is_found_and_does_not_cost_hits(colours):
    hits = search(colours, "red", TOY, k=5, where="id >= '020' AND id < '030'")
    assert [hit.id for hit in hits] == ["020", "021", "022", "023", "024"]
    assert search(colours, "red", TOY, where="width > 100") == ()
    # OR must not let in what is gone
    assert "gone" not in {hit.id for hit in search(colours, "red", TOY, k=50, where="id = 'gone' OR width > 1")}


@pytest.mark.parametrize("where", ["nope = 3", "width >", "1; DROP TABLE x"])
def test_a_condition_that_is_none_is_wrong_usage(colours, where):
    with pytest.raises(UsageError, match="columns: id, hash"):
        search(colours, "red", TOY, where=where)


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_exact_search_is_sorting_by_the_cosine(tmp_path_factory, seed, k):
    chance = np.random.default_rng(seed)
    vectors = unit(np.round(chance.normal(size=(20, 16)), 0) + 0.1)  # some are equal
    index = ready(tmp_path_factory.mktemp("exact") / "x.lance", vectors)
    query = unit(chance.normal(size=(1, 16)))[0]
    hits = index.nearest(query, k)
    cosines = vectors.astype(np.float64) @ query
    assert len(hits.ids) == min(k, 20)
    np.testing.assert_allclose(hits.similarity, np.sort(cosines)[::-1][:k], atol=1e-6)
    np.testing.assert_allclose(hits.similarity, [cosines[int(id_)] for id_ in hits.ids], atol=1e-6)
    np.testing.assert_allclose([cosines[int(id_)] for id_ in index.top(query[None], k)[0]], hits.similarity, atol=1e-6)


def test_only_what_a_guard_calls_ood_and_as_many_as_were_wanted(colours):
    guard = Guard(["red"], encoder=TOY, detector="max_logit", threshold=-0.5)
    ood = {verdict.id: verdict for verdict in guard.scan(colours) if verdict.is_ood}
    nearest = search(colours, "red", TOY, k=41, guard=guard)
    assert nearest[0].verdict.is_ood is False
    hits = search(colours, "red", TOY, k=6, guard=guard, ood_only=True)
    assert [hit.id for hit in hits] == [hit.id for hit in nearest if hit.id in ood][:6]
    assert hits[0].verdict.ood_score == pytest.approx(ood[hits[0].id].ood_score, abs=1e-6)
    assert len(search(colours, "red", TOY, k=1000, guard=guard, ood_only=True)) == len(ood)


def test_ood_only_needs_somebody_who_decides(colours):
    with pytest.raises(UsageError, match="guard"):
        search(colours, "red", TOY, ood_only=True)
    with pytest.raises(NotReadyError, match="no threshold"):
        search(colours, "red", TOY, ood_only=True, guard=Guard(["red", "blue"], encoder=TOY))


def test_another_encoder_is_refused(colours, lite):
    with pytest.raises(MismatchError, match=r"'toy'.*'lite'"):
        search(colours, "red", lite)
    with pytest.raises(MismatchError, match=r"'toy'.*'lite'"):
        search(colours, "red", TOY, guard=Guard(["red"], encoder=lite, detector="max_logit", threshold=0.0))


@pytest.mark.parametrize("what", ["photos", "my photos.zip", "é"])
def test_images_that_are_no_index_are_told_how_to_become_one(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / what).mkdir()
    done = run("search", what, "cat")
    assert isinstance(done.exception, UsageError)
    (said,) = re.findall(r"outclass (index .+ -o \S+\.lance)", str(done.exception))
    assert shlex.split(said)[1] == what
    save_picture(tmp_path / what / "a.png", RED)
    assert run(*shlex.split(said), "-e", "toy", "-q").exit_code == 0  # as it stands there
    assert "no such index" in str(run("search", "nothing.lance", "cat").exception)


@pytest.mark.parametrize("query", ["", "  "])
def test_no_words_find_nothing(colours, query):
    with pytest.raises(UsageError, match="nothing to search for"):
        search(colours, query, TOY)


def test_a_name_of_an_image_that_is_not_there_is_no_words(colours):
    with pytest.raises(ImageError):
        search(colours, "holiday.jpg", TOY)
    with pytest.raises(UsageError, match="at least 1"):
        search(colours, "red", TOY, k=0)


def test_approximate_search_above_a_limit_and_its_recall(tmp_path, monkeypatch):
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(40, 16))
    vectors = unit(centres[chance.integers(0, 40, 3000)] + 0.4 * chance.normal(size=(3000, 16)))
    exact = ready(tmp_path / "exact.lance", vectors)
    assert not exact.approximate
    monkeypatch.setattr(table, "ANN_FROM", 3000)
    index = ready(tmp_path / "ann.lance", vectors)
    assert index.approximate
    assert index.recall() >= 0.95
    for query in unit(chance.normal(size=(20, 16))):
        assert index.nearest(query, 10, exact=True).ids == exact.nearest(query, 10).ids
        assert len({*index.nearest(query, 10).ids} & {*exact.nearest(query, 10).ids}) >= 8
    # What is added later is found too.
    added = ready(tmp_path / "ann.lance", unit(-centres[:1]), ["added"])
    assert added.nearest(unit(-centres[:1])[0], 1).ids == ("added",)
    monkeypatch.setattr(table, "PROBES", 1)
    monkeypatch.setattr(table, "REFINE", 1)
    assert index.recall() < 0.95  # the measure can tell


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("dog", False), ("a dog", False), ("The Golden Retriever", False), ("sunglasses", False), ("mice", False),
        ("a dog wearing sunglasses", True), ("cat on a sofa", True), ("running", False), ("very happy", True),
    ],
)  # fmt: skip
def test_what_is_more_than_a_noun(words, more):
    assert beyond_nouns(words) is more


@pytest.fixture
def place(tmp_path, photos, monkeypatch):
    """A folder with an index of red, green, blue, and a broken file."""
    monkeypatch.chdir(tmp_path)
    (photos / "d.jpg").write_bytes(b"no picture")
    assert run("index", "photos", "-o", "photos.lance", "-e", "toy", "-q").exit_code == 3
    return tmp_path


def test_the_command_indexes_again_with_the_encoder_of_the_index(place):
    save_picture(place / "photos" / "e.png", RED)
    done = run("index", "photos", "-o", "photos.lance", "--allow-failed", "1")
    assert done.exit_code == 0, done.output
    assert "5 images; 1 new, 0 changed, 4 unchanged, 1 could not be read" in done.stderr
    assert "could not be read: d.jpg (no image format" in done.stderr
    assert Index("photos.lance").encoder == "toy"


def test_the_command_scans_an_index(place):
    assert run("scan", "photos", "-c", "red,blue", "-e", "toy", "-t", "-0.9", "-o", "a", "-q").exit_code == 3
    assert run("scan", "photos.lance", "-c", "red,blue", "-e", "toy", "-t", "-0.9", "-o", "b", "-q").exit_code == 3
    assert (place / "b" / "verdicts.csv").read_bytes() == (place / "a" / "verdicts.csv").read_bytes()
    page = (place / "b" / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 3  # found again where the index was made from


def test_the_command_prints_a_table_or_json(place):
    done = run("search", "photos.lance", "green", "-k", "2")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["similarity", "pixels", "image"]
    assert lines[1].split()[-1] == "b-green.png"
    found = json.loads(run("search", "photos.lance", "photos/c/blue.png", "--json").stdout)
    assert [list(row) for row in found] == [["id", "similarity", "width", "height"]] * 3
    assert (found[0]["id"], round(found[0]["similarity"], 5)) == ("c/blue.png", 1.0)


def test_the_command_says_that_nothing_is_found(place):
    done = run("search", "photos.lance", "red", "--where", "width > 5000")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no image found that meets these conditions" in done.stderr
    assert "no image found" not in run("search", "photos.lance", "red").stderr
    assert "sentences" not in str(run("search", "photos.lance", "").output)


def test_the_command_finds_the_unknown(place):
    Guard(["red", "blue"], encoder="toy", threshold=-0.9).save("my.guard")
    done = run("search", "photos.lance", "red", "--guard", "my.guard", "--ood-only", "--json")
    (found,) = json.loads(done.stdout)
    assert (found["id"], found["is_ood"]) == ("b-green.png", True)
    assert "OOD" in run("search", "photos.lance", "green", "-g", "my.guard").stdout.splitlines()[1]
    assert isinstance(run("search", "photos.lance", "red", "--ood-only").exception, UsageError)


def test_the_command_writes_a_contact_sheet(place):
    done = run("search", "photos.lance", "<b>green</b> & red", "-k", "2", "-o", "found")
    assert done.exit_code == 0, done.output
    page = (place / "found" / "search.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 2
    assert "<b>green" not in page
    assert "&lt;b&gt;green&lt;/b&gt; &amp; red" in page
    assert not re.search(r"<script|https?://", page)
    run("search", "photos.lance", "red", "--no-thumbnails", "-o", "bare")
    assert "data:image/jpeg" not in (place / "bare" / "search.html").read_text("utf-8")


def test_a_contact_sheet_of_nothing_and_of_verdicts():
    assert "0 images" in contact_sheet("no such thing", (), None, {})
    page = contact_sheet("x", (Hit("a<i>.jpg", 0.5, 3, 2),), None, {})
    assert "a&lt;i&gt;.jpg" in page


def test_a_contact_sheet_with_verdicts_says_which_way_the_score_goes(place):
    Guard(["red", "blue"], encoder="toy", threshold=-0.9).save("my.guard")
    for options, said in ((["-g", "my.guard"], True), ([], False)):
        run("search", "photos.lance", "red", *options, "-o", "found", "-q")
        page = (place / "found" / "search.html").read_text("utf-8")
        assert ("higher = more OOD" in page) is said
        assert ("ood_score &gt; -0.9 is OOD (user threshold)" in page) is said


def test_with_lite_the_command_says_that_sentences_need_clip(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("index", "photos", "-o", "photos.lance", "-q")
    assert "sentences" in run("search", "photos.lance", "a dog wearing sunglasses").stderr
    assert "sentences" not in run("search", "photos.lance", "a dog").stderr
    assert "sentences" not in run("search", "photos.lance", "photos/a-red.png").stderr


def precision(images, names, lite, path, k=10):
    """Share of the k nearest to each name that lie in its folder."""
    build(images, path, lite)
    index = Index(path)
    rows = [search(index, name.replace("_", " "), lite, k=k) for name in names]
    return [np.mean([name in hit.id.split("/") for hit in hits]) for name, hits in zip(names, rows, strict=True)]


def test_a_class_name_finds_its_images_with_lite(lite, tmp_path):
    root = shared_data("dev") / "imagenette_id10"
    names = sorted(folder.name for folder in root.iterdir())
    few = [(f"{name}/{file.name}", file) for name in names for file in sorted((root / name).iterdir())[:6]]
    assert np.mean(precision(few, names, lite, tmp_path / "x.lance", k=5)) >= 0.9


@pytest.mark.long
@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("imagenette_id10", ("English_springer", "French_horn", "cassette_player", "chain_saw", "church",
                             "garbage_truck", "gas_pump", "golf_ball", "parachute", "tench")),
        ("pets_vehicles", ("cat", "dog", "car", "birds")),
    ],
)  # fmt: skip
def test_precision_at_ten_with_lite(lite, tmp_path, folder, names):
    shares = precision(shared_data("dev") / folder, names, lite, tmp_path / "x.lance")
    print(folder, dict(zip(names, shares, strict=True)))
    assert np.mean(shares) >= 0.9


def test_blue_is_not_the_nearest_to_red(colours):
    assert search(colours, picture(BLUE), TOY, k=100)[-1].similarity < 0.5
