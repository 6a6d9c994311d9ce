"""Shared batches: right answers in the right place, bounded waiting, nobody held up by a neighbour."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import RED, encoded, noisy_picture, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from outclass import Guard
from outclass.images.loader import Reader

pytest.importorskip("fastapi")
from serving import SlowEncoder, sha256

from outclass.serve.batching import Batcher, ClosedError, QueueFullError
from outclass.serve.service import Check, Served

PHOTOS = [encoded(noisy_picture((40, 30), seed)) for seed in range(12)]
GUARD = Guard(["red", "blue"], encoder="toy", threshold=-0.9)
RIGHT = [GUARD.check(photo).ood_score for photo in PHOTOS]


@pytest.fixture
def slow():
    return SlowEncoder()


@pytest.fixture
def batcher(slow):
    made = Batcher(slow, Reader(slow.info.preprocess), batch_size=4, threads=2, max_images=20, max_bytes=100_000)
    yield made
    slow.door.set()
    assert made.close(20)


def work():
    return Check(Served(GUARD))


def scores(ticket):
    return [verdict.ood_score for verdict, _ in ticket.answers.result(20)]


def wait_until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def fill(batcher, together):
    """Submits so many images at a time until there is no room, a quarter of a second long: nothing moves any more."""
    full = 0
    for _ in range(200):
        try:
            batcher.submit([("x", PHOTOS[0])] * together, work())
            full = 0
        except QueueFullError:
            full += 1
            time.sleep(0.05)
        if full == 5:
            return
    raise AssertionError("there was always room")


def test_clients_that_come_at_once_share_batches(batcher, slow):
    slow.door.clear()
    tickets = [batcher.submit([(str(row), photo)], work()) for row, photo in enumerate(PHOTOS)]
    wait_until(lambda: not batcher.queued[0])
    slow.door.set()
    for row, ticket in enumerate(tickets):
        assert scores(ticket) == pytest.approx([RIGHT[row]], abs=1e-6)
    assert sum(slow.sizes) == len(PHOTOS)
    assert 1 < max(slow.sizes) <= 4
    assert len(slow.sizes) < len(PHOTOS)


def test_one_image_alone_does_not_wait_for_others():
    encoder = SlowEncoder()
    patient = Batcher(encoder, Reader(encoder.info.preprocess), wait=60)
    assert scores(patient.submit([("a", PHOTOS[0])], work()))
    assert patient.close(20)


@given(st.lists(st.lists(st.integers(-1, len(PHOTOS) - 1), max_size=7), min_size=1, max_size=9))
@settings(max_examples=40)
def test_every_answer_is_that_of_its_image_in_its_place(requests):
    encoder = SlowEncoder()
    some = Batcher(encoder, Reader(encoder.info.preprocess), batch_size=3, threads=2, wait=0.001)
    judge = work()
    pictures = [[(str(row), b"bad" if row < 0 else PHOTOS[row]) for row in rows] for rows in requests]
    with ThreadPoolExecutor(4) as pool:
        tickets = list(pool.map(lambda images: some.submit(images, judge), pictures))
    for rows, images, ticket in zip(requests, pictures, tickets, strict=True):
        said = ticket.answers.result(20)
        assert [verdict.id for verdict, _ in said] == [id_ for id_, _ in images]
        assert [hash for _, hash in said] == [sha256(data) for _, data in images]
        assert [verdict.error is None for verdict, _ in said] == [row >= 0 for row in rows]
        wanted = [RIGHT[row] for row in rows if row >= 0]
        assert [one.ood_score for one, _ in said if one.error is None] == pytest.approx(wanted, abs=1e-6)
    assert some.close(20)


def test_a_full_queue_takes_all_of_a_request_or_nothing(batcher, slow):
    slow.door.clear()
    fill(batcher, 5)
    waiting = batcher.queued
    assert 15 < waiting[0] <= 20
    with pytest.raises(QueueFullError):
        batcher.submit([("x", PHOTOS[0])] * 6, work())
    assert batcher.queued == waiting


def test_bytes_are_bounded_too(batcher):
    with pytest.raises(QueueFullError):
        batcher.submit([("x", b"x" * 50_001)] * 2, work())
    assert batcher.queued == (0, 0)


def test_who_goes_gives_back_what_was_not_begun(batcher, slow):
    slow.door.clear()
    fill(batcher, 1)
    with pytest.raises(QueueFullError):
        batcher.submit([("y", PHOTOS[1])] * 2, work())
    before = batcher.queued
    last = batcher._queue[-1].ticket
    batcher.cancel(last)
    assert batcher.queued == (before[0] - 1, before[1] - len(PHOTOS[0]))
    with pytest.raises(CancelledError):
        last.answers.result(1)
    mine = batcher.submit([("y", PHOTOS[1])], work())
    slow.door.set()
    assert scores(mine) == pytest.approx([RIGHT[1]], abs=1e-6)


def test_what_was_begun_for_somebody_gone_harms_nobody(batcher, slow):
    slow.door.clear()
    gone = batcher.submit([("a", PHOTOS[0]), ("b", b"bad"), ("c", PHOTOS[1])], work())
    wait_until(lambda: not batcher.queued[0])
    batcher.cancel(gone)
    stays = batcher.submit([("d", PHOTOS[2])], work())
    slow.door.set()
    assert scores(stays) == pytest.approx([RIGHT[2]], abs=1e-6)


def test_closing_finishes_what_was_accepted_and_takes_no_more(slow):
    made = Batcher(slow, Reader(slow.info.preprocess), batch_size=4, threads=2)
    slow.door.clear()
    tickets = [made.submit([(str(row), photo)], work()) for row, photo in enumerate(PHOTOS)]
    assert made.close(0.05) is False
    with pytest.raises(ClosedError):
        made.submit([("late", PHOTOS[0])], work())
    slow.door.set()
    assert made.close(20) is True
    assert [scores(ticket)[0] for ticket in tickets] == pytest.approx(RIGHT, abs=1e-6)


def test_an_encoder_that_fails_once_fails_once(batcher, slow):
    slow.broken = True
    lost = batcher.submit([("a", PHOTOS[0])] * 6, work())
    with pytest.raises(RuntimeError, match="device"):
        lost.answers.result(20)
    slow.broken = False
    assert scores(batcher.submit([("a", PHOTOS[0])], work())) == pytest.approx([RIGHT[0]], abs=1e-6)


@dataclass(frozen=True)
class Broken:
    """A guard of somebody's session that cannot judge."""

    patches: bool = False

    def __call__(self, batch):
        raise ValueError("not fitted")

    def failed(self, id, error):
        return error


def test_a_guard_that_fails_does_not_fail_the_others_of_its_batch(batcher, slow):
    slow.door.clear()
    bad = batcher.submit([("a", PHOTOS[0]), ("b", PHOTOS[1])], Broken())
    good = batcher.submit([("c", PHOTOS[2]), ("d", PHOTOS[3])], work())
    slow.door.set()
    with pytest.raises(ValueError, match="fitted"):
        bad.answers.result(20)
    assert scores(good) == pytest.approx(RIGHT[2:4], abs=1e-6)


def test_pictures_and_arrays_are_taken_as_well_as_bytes(batcher):
    ticket = batcher.submit([("a", picture(RED)), ("b", encoded(picture(RED)))], work())
    (as_picture, no_hash), (as_bytes, hash_) = ticket.answers.result(20)
    assert as_picture.ood_score == pytest.approx(as_bytes.ood_score)
    assert (no_hash, len(hash_)) == (None, 64)


def test_no_images_no_wait(batcher):
    assert batcher.submit([], work()).answers.result(0) == []


def test_threads_end_with_the_batcher(slow):
    made = Batcher(slow, Reader(slow.info.preprocess), threads=3)
    assert made.close(20)
    assert not [thread for thread in made._threads if thread.is_alive()]
