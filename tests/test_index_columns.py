"""Columns that an index holds on request: local vectors and small pictures."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from conftest import GREEN, RED, encoded, noisy_picture, picture, run, save_picture, shared_data
from PIL import Image
from test_index import Counting, build, rows, verdicts

from outclass import Guard, UsageError
from outclass.discover import discover
from outclass.encoders.toy import ToyEncoder
from outclass.index import Index, table
from outclass.report.contact import contact_sheet
from outclass.search import search

pytest.importorskip("lancedb")

BOUND = 1e-4  # of ood_score, for local vectors in half precision; docs/index.md says so


def local_guard(**options):
    return Guard(["red", "blue"], encoder="toy", detector="gl_mcm", threshold=-0.9, **options)


def same_but_for_halves(found, expected):
    """Whether verdicts are the same but for the last digits of a score."""
    assert [one | {"ood_score": 0} for one in found] == [one | {"ood_score": 0} for one in expected]
    scores = [[one["ood_score"] or 0 for one in side] for side in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=0, atol=BOUND)


@pytest.fixture
def noisy(tmp_path):
    """Pictures that differ from place to place, one broken, and an index of them with all columns."""
    for row in range(9):
        (tmp_path / "p" / str(row % 2)).mkdir(parents=True, exist_ok=True)
        noisy_picture((40, 40), row).save(tmp_path / "p" / str(row % 2) / f"{row}.png")
    (tmp_path / "p" / "broken.jpg").write_bytes(b"no picture")
    build(tmp_path / "p", tmp_path / "x.lance", patches=True, thumbnails=True)
    return tmp_path


def test_a_detector_of_local_vectors_judges_an_index_as_it_judges_the_folder(noisy):
    expected = verdicts(local_guard().scan(noisy / "p"))
    assert np.ptp([one["ood_score"] for one in expected if one["ood_score"]]) > 50 * BOUND
    same_but_for_halves(verdicts(local_guard().scan(noisy / "x.lance")), expected)
    same_but_for_halves(*(verdicts(local_guard(batch_size=2).scan(noisy / name)) for name in ("x.lance", "p")))


def test_what_is_found_and_grouped_is_judged_by_its_local_vectors(noisy, monkeypatch):
    index, guard = Index(noisy / "x.lance"), local_guard()
    scanned = {one.id: one for one in guard.scan(noisy / "x.lance") if one.error is None}
    guard.set_threshold(float(np.median([one.ood_score for one in scanned.values()])))
    unknown = {one.id for one in guard.scan(noisy / "x.lance") if one.is_ood}
    assert 0 < len(unknown) < len(scanned)
    monkeypatch.setattr(table, "READ_BYTES", 2 * 2 * index.patches * index.dim)  # two images at a time
    hits = search(index, "red", ToyEncoder(), guard=guard)
    assert [hit.verdict.id for hit in hits] == [hit.id for hit in hits]
    assert {hit.id: hit.verdict.ood_score for hit in hits} == pytest.approx(
        {id_: one.ood_score for id_, one in scanned.items()}, abs=1e-6
    )
    assert {hit.id for hit in search(index, "red", ToyEncoder(), guard=guard, ood_only=True)} == unknown
    pytest.importorskip("sklearn")
    found = discover(index, guard, min_size=2)
    assert {*found.apart, *(id_ for group in found.groups for id_ in group.ids)} == unknown


def test_without_local_vectors_neither_search_nor_discover_guesses(tmp_path, photos):
    pytest.importorskip("sklearn")
    build(photos, tmp_path / "bare.lance")
    with pytest.raises(UsageError, match="--patches"):
        search(Index(tmp_path / "bare.lance"), "red", ToyEncoder(), guard=local_guard())
    with pytest.raises(UsageError, match="--patches"):
        discover(tmp_path / "bare.lance", local_guard())


def test_local_vectors_are_those_of_the_row_after_changes_in_any_order(noisy, monkeypatch):
    noisy_picture((40, 40), 99).save(noisy / "p" / "0" / "0.png")
    noisy_picture((40, 40), 98).save(noisy / "p" / "0" / "00.png")
    (noisy / "p" / "1" / "3.png").unlink()
    (noisy / "p" / "1" / "5.png").write_bytes(b"no picture any more")
    noisy_picture((40, 40), 97).save(noisy / "p" / "broken.jpg", "PNG")
    done = build(noisy / "p", noisy / "x.lance")  # the index knows which columns it has
    assert (done.new, done.changed, done.gone) == (1, 3, 1)
    monkeypatch.setattr(table, "READ_BYTES", 1500)  # two rows at a time
    same_but_for_halves(verdicts(local_guard().scan(noisy / "x.lance")), verdicts(local_guard().scan(noisy / "p")))


def test_vectors_are_the_same_with_and_without_more_columns(noisy):
    build(noisy / "p", noisy / "bare.lance")
    assert rows(noisy / "bare.lance") == [
        {name: value for name, value in row.items() if name not in ("patches", "thumbnail")}
        for row in rows(noisy / "x.lance")
    ]


def test_a_column_that_an_index_was_begun_without_is_refused_and_nothing_is_changed(noisy):
    build(noisy / "p", noisy / "bare.lance")
    version, encoder = Index(noisy / "bare.lance").table.version, Counting()
    with pytest.raises(UsageError, match=r"begun without --patches .* and --thumbnails"):
        build(noisy / "p", noisy / "bare.lance", encoder, patches=True, thumbnails=True)
    assert Index(noisy / "bare.lance").table.version == version
    assert build(noisy / "p", noisy / "x.lance", encoder, patches=True).unchanged == 10
    assert encoder.seen == 0
    assert list(noisy.glob(".*.lock")) == []


def test_an_encoder_without_local_vectors_is_refused_before_anything_is_made(tmp_path, photos):
    class Plain:
        info, encode_texts = ToyEncoder.info, None

        def encode_images(self, pixels):
            raise AssertionError

    with pytest.raises(UsageError, match="local"):
        build(photos, tmp_path / "x.lance", Plain(), patches=True)
    assert not (tmp_path / "x.lance").exists()


def test_local_vectors_of_lite_in_half_precision(lite, tmp_path):
    some = sorted((shared_data("dev") / "pets_vehicles").rglob("*.jpg"))[::40]
    build([(str(row), file) for row, file in enumerate(some)], tmp_path / "x.lance", lite, patches=True)
    for detector in ("gl_mcm", "l_mcm"):
        guard = Guard(["cat", "dog", "car"], lite, detector, threshold=-0.6)
        found, expected = (
            {one.id: one.ood_score for one in guard.scan(source)}
            for source in (tmp_path / "x.lance", [(str(row), file) for row, file in enumerate(some)])
        )
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[id_] for id_ in expected], list(expected.values()), rtol=0, atol=BOUND)
    guard = Guard(["cat", "dog", "car"], lite, "max_logit", threshold=-0.5)
    found = {one.id: one for one in guard.scan(tmp_path / "x.lance")}
    plain = {one.id: one for one in guard.scan([(str(row), file) for row, file in enumerate(some)])}
    assert {id_: one.label for id_, one in found.items()} == {id_: one.label for id_, one in plain.items()}
    assert max(abs(found[id_].ood_score - plain[id_].ood_score) for id_ in plain) < 1e-5


def test_a_thumbnail_is_small_upright_and_says_nothing_of_the_original(lite, tmp_path):
    image = picture(size=(600, 400))
    image.paste(GREEN, (0, 0, 300, 400))  # green left, red right
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "SECRET"  # lies on its side
    image.save(tmp_path / "a.jpg", exif=exif, comment=b"SECRET")
    build([("it's.jpg", tmp_path / "a.jpg"), ("b", b"no picture")], tmp_path / "x.lance", lite, thumbnails=True)
    index = Index(tmp_path / "x.lance")
    jpeg = index.thumbnail("it's.jpg")
    with Image.open(io.BytesIO(jpeg)) as small:
        assert (small.format, max(small.size), small.size[0] < small.size[1]) == ("JPEG", 160, True)
        top, bottom = small.getpixel((50, 5)), small.getpixel((50, small.height - 5))
        assert (top[1] > top[0], bottom[0] > bottom[1]) == (True, True)
        assert (len(small.getexif()), "comment" in small.info) == (0, False)
    assert b"SECRET" not in jpeg
    assert index.thumbnail("b") is None
    assert index.thumbnail("no such id") is None


def test_thumbnails_stand_in_for_files_that_are_gone(noisy):
    index = Index(noisy / "x.lance")
    assert index.find("0/0.png") == str(noisy / "p" / "0" / "0.png")
    shutil.rmtree(noisy / "p")
    assert index.find("0/0.png") == index.thumbnail("0/0.png") is not None
    assert index.find("broken.jpg") is None
    assert next(iter(index)).source == str(noisy / "p" / "0" / "0.png")  # an image, which is not there
    hits = search(index, "red", ToyEncoder(), k=4)
    assert contact_sheet("red", hits, index.find, {}).count("data:image/jpeg") == 4
    bare = noisy / "bare.lance"
    build([("a", picture(RED))], bare)
    assert (Index(bare).thumbnails, Index(bare).thumbnail("a"), Index(bare).find("a")) == (False, None, None)


def test_the_picture_that_the_caller_lent_stays_as_it_was(tmp_path):
    lent = noisy_picture((400, 300), 1)
    before = encoded(lent)
    build([("a", lent)], tmp_path / "x.lance", thumbnails=True)
    assert encoded(lent) == before


def test_the_command_keeps_both_columns_and_pages_show_them(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("index", "photos", "-o", "x.lance", "-e", "toy", "--patches", "--thumbnails", "-q").exit_code == 0
    shutil.rmtree(photos)
    done = run("scan", "x.lance", "-c", "red,blue", "-e", "toy", "-d", "gl_mcm", "-t", "-0.9", "-o", "out", "-q")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("data:image/jpeg") == 3
    assert run("search", "x.lance", "red", "-o", "found", "-q").exit_code == 0
    assert (tmp_path / "found" / "search.html").read_text("utf-8").count("data:image/jpeg") == 3


def test_a_search_looks_past_the_other_columns(noisy):
    found = run("search", str(noisy / "x.lance"), "red", "--json", "--where", "id LIKE '1/%'")
    assert {row["id"] for row in json.loads(found.stdout)} == {f"1/{row}.png" for row in (1, 3, 5, 7)}


def test_a_broken_file_that_was_whole_loses_its_picture(noisy):
    save_picture(noisy / "p" / "0" / "0.png", GREEN)
    (noisy / "p" / "0" / "0.png").write_bytes(b"no picture")
    build(noisy / "p", noisy / "x.lance")
    (row,) = [row for row in rows(noisy / "x.lance") if row["id"] == "0/0.png"]
    assert (row["thumbnail"], row["patches"], row["vector"]) == (None, None, None)
