"""What an index remembers of its images in 49 bytes each, and which of a source it therefore looks at."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import BLUE, RED, picture, save_picture
from hypothesis import given
from hypothesis import strategies as st

from outclass.images.sources import Item
from outclass.index import Index, build, ledger
from outclass.index.ledger import Digests, Known, Ledger, Seen, digest
from outclass.index.sieve import LOOKED_AT, NEW, PASSED, UNSEEN, Sieve

pytest.importorskip("lancedb")


@pytest.fixture
def place(tmp_path, photos):
    """Three pictures and one broken file, indexed; one picture is gone."""
    (photos / "d.jpg").write_bytes(b"no picture")
    for _ in range(2):
        build(photos, tmp_path / "photos.lance", "toy", threads=2)
        (photos / "c" / "blue.png").unlink(missing_ok=True)
    return tmp_path


def read(place):
    table = Index(place / "photos.lance").table
    return table, Ledger.of(table)


def test_a_ledger_knows_every_row_as_the_table_has_it(place):
    table, found = read(place)
    digests = Digests(found.high, found.low)
    rows = table.search().to_arrow().to_pylist()
    assert len(rows) == len(found) == 4
    for row in rows:
        expected = Known(*(row[name] for name in Known._fields))
        assert found.known(digests.row(digest(row["id"]))) == expected
    assert {row["gone"] for row in rows} == {True, False}
    assert digests.row(digest("c/blue.pnG")) == NEW


def test_ids_come_back_in_the_order_of_the_table(place):
    table, found = read(place)
    expected = table.search().select(["id"]).to_arrow().column("id").to_pylist()
    assert list(found.ids(table, np.ones(4, bool))) == expected
    assert list(found.ids(table, (found.state & ledger.GONE) > 0)) == ["c/blue.png"]
    assert list(found.ids(table, np.zeros(4, bool))) == []


@given(st.lists(st.integers(0, 80), max_size=200))
def test_what_was_seen_is_a_set_however_often_it_is_sorted_in(numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "FEW", 3)
        seen, known = Seen(), set()
        for number in numbers:
            assert seen.add(digest(str(number))) == (number not in known)
            known.add(number)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True, max_size=16))
def test_digests_that_share_their_front_half_are_told_apart(pairs):
    pairs.sort()
    digests = Digests(*(np.array([pair[at] for pair in pairs], np.uint64) for at in range(2)))
    for high in range(4):
        for low in range(4):
            one = high.to_bytes(8, "big") + low.to_bytes(8, "big")
            assert digests.row(one) == (pairs.index((high, low)) if (high, low) in pairs else -1)


def test_a_sieve_passes_over_what_is_as_it_was(place):
    _, found = read(place)
    photos = place / "photos"
    os.utime(photos / "b-green.png", (1, 1))
    new = save_picture(photos / "new.png", BLUE)
    names = ["a-red.png", "b-green.png", "d.jpg", "new.png", "new.png", "a-red.png"]
    sieve = Sieve(found, rehash=False)
    passed = [sieve.sift(Item(name, str(photos / name))) for name in names]
    assert [item and item.id for item in passed] == [None, "b-green.png", "d.jpg", "new.png", None, None]
    touched, broken, fresh = passed[1:4]
    assert touched.hash == found.known(touched.row).hash is not None
    assert broken.hash is None  # it is read whatever its bytes are
    assert (fresh.row, fresh.source) == (NEW, str(new))
    assert (sieve.doubled, sieve.n) == (2, 6)
    assert sorted(sieve.marks) == [UNSEEN, LOOKED_AT, LOOKED_AT, PASSED]
    assert sieve.marks[touched.row] == LOOKED_AT
    again = Sieve(found, rehash=True).sift(Item("a-red.png", str(photos / "a-red.png")))
    assert again.hash == found.known(again.row).hash


def test_an_id_that_no_file_system_would_show_is_an_id(tmp_path):
    ids = ["\udcff.png", "", "ä/\n.png"]
    sieve = Sieve(Ledger.of(_empty(tmp_path)), rehash=False)
    assert [sieve.sift(Item(id_, picture(RED))).id for id_ in ids] == ids
    assert [sieve.sift(Item(id_, picture(RED))) for id_ in ids] == [None] * 3


def _empty(tmp_path):
    build([], tmp_path / "x.lance", "toy")
    return Index(tmp_path / "x.lance").table
