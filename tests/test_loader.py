"""Threads that keep the order, draw lazily, lose nothing; and the two ways of encoding a stream."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import threading

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, noisy_picture, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from outclass import load_encoder
from outclass.encoders.stream import encode_stream
from outclass.images import loader
from outclass.images.loader import Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import Files, Item


class Alone:
    """The toy encoder as one that wants all calls from one thread; remembers the calls."""

    def __init__(self):
        self.toy = load_encoder("toy")
        self.info = dataclasses.replace(self.toy.info, parallel=1)
        self.sizes, self.threads = [], set()

    def encode_images(self, pixels):
        self.sizes.append(len(pixels))
        self.threads.add(threading.get_ident())
        return self.toy.encode_images(pixels)

    def encode_texts(self, texts):
        return self.toy.encode_texts(texts)


@given(n=st.integers(0, 60), threads=st.integers(1, 8), order=st.randoms())
def test_results_come_in_the_order_of_the_tasks(n, threads, order):
    work = [order.randrange(1, 2000) for _ in range(n)]

    def function(task):
        sum(range(work[task]))  # some take longer than others
        return task

    assert list(map_ordered(function, range(n), threads)) == list(range(n))


def test_a_slow_first_task_does_not_let_later_ones_pass():
    gate = threading.Event()

    def function(task):
        if task == 0:
            gate.wait(10)
        elif task == 3:
            gate.set()  # reached only when later tasks run while the first waits
        return task

    assert list(map_ordered(function, range(8), 4)) == list(range(8))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_tasks_are_drawn_as_needed(threads):
    drawn = itertools.count()
    results = map_ordered(lambda task: task, (next(drawn) for _ in range(10_000)), threads)
    for _ in range(10):
        next(results)
    ahead = next(drawn) - 10
    results.close()
    assert ahead <= 2 * threads


@pytest.mark.parametrize("threads", [1, 3])
def test_at_most_twice_as_many_tasks_as_threads_are_under_way(threads):
    lock, now, most = threading.Lock(), 0, 0

    def tasks():
        nonlocal now, most
        for task in range(100):
            with lock:
                now += 1
                most = max(most, now)
            yield task

    for _ in map_ordered(lambda task: task, tasks(), threads):
        with lock:
            now -= 1
    assert most <= 2 * threads + 1  # and the one that is handed over


def test_nothing_is_drawn_before_the_first_result_is_wanted():
    drawn = []
    map_ordered(lambda task: task, (drawn.append(row) for row in range(5)), 2)
    assert drawn == []


def test_stopping_early_drops_what_waits_and_leaves_no_thread():
    done, before = [], threading.active_count()
    results = map_ordered(lambda task: done.append(task), range(10_000), 2)
    next(results)
    results.close()
    assert len(done) <= 6
    assert threading.active_count() == before


def test_a_failing_task_raises_in_its_place():
    results = map_ordered(lambda task: 1 / (task - 3), range(10), 2)
    assert len(list(itertools.islice(results, 3))) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_failing_source_raises_after_what_it_had_given():
    def tasks():
        yield from range(7)
        raise KeyError("the source broke")

    got = []
    with pytest.raises(KeyError, match="broke"):
        got.extend(map_ordered(lambda task: task, tasks(), 3))
    assert got == list(range(7))


@given(n=st.integers(0, 50), size=st.integers(1, 9))
def test_chunks_hold_everything_once_in_order(n, size):
    cut = list(chunks(range(n), size))
    assert [one for chunk in cut for one in chunk] == list(range(n))
    assert all(len(chunk) == size for chunk in cut[:-1])
    assert all(cut)


COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}
GOOD = {name: encoded(picture(colour)) for name, colour in COLOURS.items()}
BAD = [b"", b"no image", GOOD["red"][:40], None]


def features(items, encoder, **options):
    """(ids, errors, vectors) of a stream, put together."""
    parts = list(encode_stream(Files(items), encoder, Reader(encoder.info.preprocess), **options))
    for part in parts:
        assert len(part.ids) == len(part.errors)
        assert len(part.vectors) == part.errors.count(None)
    vectors = [part.vectors for part in parts] or [np.empty((0, encoder.info.dim), np.float32)]
    return (
        [one for part in parts for one in part.ids],
        [one for part in parts for one in part.errors],
        np.vstack(vectors),
    )


@given(
    kinds=st.lists(st.sampled_from(["red", "green", "blue", 0, 1, 2, 3]), max_size=60),
    batch_size=st.integers(1, 20),
    threads=st.integers(1, 4),
    alone=st.booleans(),
)
def test_nothing_is_lost_doubled_or_moved_among_failures(kinds, batch_size, threads, alone):
    encoder = Alone() if alone else load_encoder("toy")
    items = [(f"{row}", BAD[kind] if isinstance(kind, int) else GOOD[kind]) for row, kind in enumerate(kinds)]
    ids, errors, vectors = features(items, encoder, batch_size=batch_size, threads=threads)
    assert ids == [str(row) for row in range(len(kinds))]
    assert [error is None for error in errors] == [isinstance(kind, str) for kind in kinds]
    texts = encoder.encode_texts(list(COLOURS))
    labels = [list(COLOURS)[row] for row in (vectors @ texts.T).argmax(axis=1)] if len(vectors) else []
    assert labels == [kind for kind in kinds if isinstance(kind, str)]


def test_both_ways_of_encoding_give_the_same_features():
    items = [noisy_picture((40, 30), seed) if seed % 5 else b"broken" for seed in range(61)]
    one = features(items, Alone(), batch_size=7, threads=3)
    other = features(items, load_encoder("toy"), batch_size=7, threads=3)
    assert one[:2] == other[:2]
    np.testing.assert_allclose(one[2], other[2], atol=1e-6)


def test_lite_gives_the_same_features_in_both_ways(lite):
    class AloneLite(Alone):
        def __init__(self):
            super().__init__()
            self.toy, self.info = lite, dataclasses.replace(lite.info, parallel=1)

    items = [noisy_picture((400, 300), seed) if seed % 5 else b"broken" for seed in range(20)]
    one, other = features(items, AloneLite(), batch_size=4), features(items, lite, batch_size=4)
    assert one[:2] == other[:2]
    np.testing.assert_allclose(one[2], other[2], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 13, 32])
def test_no_call_of_the_encoder_gets_more_than_the_batch_size(batch_size):
    encoder = Alone()
    features([picture()] * 50, encoder, batch_size=batch_size, threads=2)
    assert max(encoder.sizes) <= batch_size
    assert sum(encoder.sizes) == 50
    assert len(encoder.sizes) <= 2 * (50 // batch_size + 1), "batches far smaller than asked for"


def test_an_encoder_that_wants_one_thread_gets_one():
    encoder = Alone()
    features([picture()] * 50, encoder, batch_size=4, threads=4)
    assert encoder.threads == {threading.get_ident()}


@pytest.mark.parametrize("alone", [True, False])
def test_a_source_that_breaks_loses_nothing_it_had_given(alone):
    def items():
        for row in range(19):
            yield Item(str(row), picture())
        raise KeyError("the source broke")

    encoder, parts = Alone() if alone else load_encoder("toy"), []
    with pytest.raises(KeyError, match="broke"):
        parts.extend(encode_stream(items(), encoder, Reader(encoder.info.preprocess), 8, 2))
    assert [one for part in parts for one in part.ids] == [str(row) for row in range(19)]


def test_a_long_run_of_failures_is_passed_on_before_the_source_ends():
    drawn, encoder = 0, Alone()

    def items():
        nonlocal drawn
        for drawn in range(1000):
            yield Item(str(drawn), b"")

    stream = encode_stream(items(), encoder, Reader(encoder.info.preprocess), 4, 2)
    first = next(stream)
    assert drawn < 100, "no more than a few batches are held"
    assert [id_ for part in (first, *stream) for id_ in part.ids] == [str(row) for row in range(1000)]


def test_a_stream_of_failures_only_has_rows_and_no_vectors():
    ids, errors, vectors = features([b""] * 20, Alone(), batch_size=4)
    assert len(ids) == 20
    assert all(errors)
    assert vectors.shape == (0, 16)


def test_an_image_that_many_rows_share_is_read_right_from_many_threads():
    data = encoded(noisy_picture((1600, 1200)))
    for _ in range(8):  # a race shows itself now and then only
        opened = Image.open(io.BytesIO(data))  # not decoded yet
        _, errors, vectors = features([opened] * 32, load_encoder("toy"), batch_size=1, threads=8)
        assert errors == [None] * 32
        assert np.ptp(vectors, axis=0).max() < 1e-6


def test_cores_are_counted_within_what_the_process_may_use():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),  # half a core is one thread
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "broken"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
        ({}, 8),
    ],
)
def test_the_cpu_quota_of_a_container_is_read(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(loader, "CGROUP", tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert usable_cores() == cores
