"""``guard.stream()``: batches, verdicts, calibration that follows the memory, snapshots that know their maker."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from conftest import BLUE, RED, picture, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Guard, MismatchError, UsageError, stored
from outclass.records import Features
from outclass.stream import METHODS, batches, noise_images

WORDS = "green,yellow,black,white,pink,orange"


def guard(**options):
    """Knows red and blue against other colours."""
    return Guard(["red", "blue"], encoder="toy", detector="neglabel", negatives=WORDS, **options)


def colours(count, seed=0, known=0.5):
    """(n, 16) vectors of the toy encoder: noisy reds and blues, and among them noisy greens and yellows."""
    chance = np.random.default_rng(seed)
    kinds = np.array([RED, BLUE, (30, 200, 40), (230, 220, 40)])
    rows = np.where(chance.random(count) < known, chance.integers(0, 2, count), chance.integers(2, 4, count))
    pixels = np.clip(kinds[rows] + chance.normal(0, 45, (count, 3)), 0, 255).astype(np.uint8)
    encoder = guard().encoder
    return encoder.encode_images(np.broadcast_to(pixels[:, None, None], (count, 8, 8, 3)).copy())


def scores(rows):
    return [row.ood_score for row in rows]


def calibrated(count=120):
    one = guard()
    reds_and_blues = np.random.default_rng(5).normal(0, 45, (count, 3)) + np.array([RED, BLUE])[np.arange(count) % 2]
    one.calibrate([picture(tuple(np.clip(c, 0, 255).astype(int))) for c in reds_and_blues], false_alarm_rate=0.1)
    return one


@pytest.mark.parametrize("method", METHODS)
def test_the_first_batch_is_judged_by_an_empty_memory_and_later_ones_are_not(method):
    one, vectors = guard(), colours(60)
    stream = one.stream(method, batch=30)
    fresh = one.stream(method).detector.score(vectors)
    got = scores(stream.check_vectors(vectors))
    assert got[:30] == fresh[:30].tolist()
    assert got[30:] != fresh[30:].tolist()
    assert stream.seen == 60
    stream.reset()
    assert stream.seen == 0
    assert scores(stream.check_vectors(vectors)) == got


@pytest.mark.filterwarnings("ignore:not validated")
def test_a_stream_changes_nothing_in_its_guard():
    one, vectors = guard(), colours(50)
    before = one.check_vectors(vectors)
    one.stream().check_vectors(vectors)
    assert one.check_vectors(vectors) == before


def test_the_published_order_learns_first():
    one, vectors = guard(), colours(40)
    stream = one.stream("dictionary:floor=null", batch=40, learn_first=True)
    got = scores(stream.check_vectors(vectors))
    expected = one.stream("dictionary:floor=null").detector.step(vectors)
    assert got == expected.tolist()
    assert got != scores(one.stream("dictionary:floor=null", batch=40).check_vectors(vectors))


def test_scan_and_vectors_say_the_same_and_a_broken_image_is_a_row(photos):
    (photos / "broken.png").write_bytes(b"no image")
    one = guard()
    scanned = list(one.stream(batch=2).scan(photos))
    read = [row for row in scanned if row.error is None]
    assert [row.id for row in scanned] == ["a-red.png", "b-green.png", "broken.png", "c/blue.png"]
    assert scanned[2].error
    assert scanned[2].is_ood is None
    vectors = one.encoder.encode_images(np.stack([one._reader.one(photos / row.id) for row in read]))
    ids = [row.id for row in read]
    assert list(one.stream(batch=2).check_vectors(vectors, ids)) == read


def test_images_one_by_one_are_batches_of_one():
    one = guard()
    stream = one.stream()
    seen = [stream.check(picture(colour)) for colour in (RED, BLUE, (30, 200, 40), RED)]
    vectors = one.encoder.encode_images(
        np.stack([one._reader.one(picture(c)) for c in (RED, BLUE, (30, 200, 40), RED)])
    )
    assert scores(seen) == scores(one.stream(batch=1).check_vectors(vectors))
    assert stream.check("nothing.png").error
    assert stream.seen == 4


def test_thresholds_and_p_values_follow_the_memory():
    one, vectors = calibrated(), colours(90)
    stream = one.stream(batch=30)
    first = stream.check_vectors(vectors[:30])
    own = one.judge.evidence.vectors
    ranks = np.sort(stream.detector.score(own))
    second = stream.check_vectors(vectors[30:60])
    assert second[0].threshold != first[0].threshold
    assert second[0].threshold_source == "calibrated"
    for row in second:  # by hand: share of calibration images, and the image itself, that score as high
        at_least = (ranks >= np.float32(row.ood_score)).sum()
        assert row.p_value == pytest.approx((at_least + 1) / (len(ranks) + 1))
        assert row.is_ood == (row.ood_score > row.threshold)


def test_the_false_alarm_rate_holds_in_whatever_order_the_stream_comes():
    alarms = []
    for seed in range(12):
        one = calibrated(60)
        known, unknown = colours(60, seed, known=1.0), colours(60, seed + 50, known=0.0)
        stream = one.stream("dictionary:weight=1", batch=20)
        stream.check_vectors(unknown)
        alarms += [row.is_ood for row in stream.check_vectors(known)]
    assert 0.02 < np.mean(alarms) < 0.2  # 0.1 asked for; 720 images, but one calibration set


def test_in_the_published_order_nothing_calibrated_decides(caplog):
    caplog.set_level(logging.WARNING, "outclass")
    rows = calibrated().stream(learn_first=True).check_vectors(colours(10))
    assert "learn_first" in caplog.text
    assert {(row.is_ood, row.p_value, row.threshold) for row in rows} == {(None, None, None)}
    rows = calibrated().stream(learn_first=True, threshold=-0.2).check_vectors(colours(10))
    assert all(row.is_ood == (row.ood_score > -0.2) and row.threshold_source == "user" for row in rows)


def test_without_a_threshold_the_way_to_one_is_said_once(caplog):
    caplog.set_level(logging.WARNING, "outclass")
    stream = guard().stream()
    assert stream.check(picture()).is_ood is None
    stream.check(picture())
    assert caplog.text.count("guard.calibrate(FOLDER)") == 1


@given(st.integers(0, 6), st.integers(1, 30), st.sampled_from(list(METHODS)), st.booleans())
def test_a_snapshot_anywhere_gives_the_same_scores(cut, batch, method, learn_first):
    import tempfile
    from pathlib import Path

    one, vectors = guard(), colours(80)
    end = cut * batch
    straight = one.stream(method, batch=batch, learn_first=learn_first)
    expected = scores(straight.check_vectors(vectors))
    first, second = (one.stream(method, batch=batch, learn_first=learn_first) for _ in range(2))
    first.check_vectors(vectors[:end])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.stream"
        first.snapshot(path)
        second.restore(path)
    assert second.seen == min(end, 80)
    assert scores(second.check_vectors(vectors[end:])) == expected[end:]


def test_a_snapshot_is_refused_by_whatever_did_not_make_it(tmp_path):
    one, path = guard(), tmp_path / "memory.stream"
    stream = one.stream()
    stream.check_vectors(colours(30))
    stream.snapshot(path)
    others = {
        "classes": Guard(["red", "pink"], "toy", "neglabel", negatives="green,yellow"),
        "words": Guard(["red", "blue"], "toy", "neglabel", negatives="green,yellow"),
        "detector": Guard(["red", "blue"], "toy", "max_logit"),
    }
    for what, other in others.items():
        with pytest.raises(MismatchError, match=f"another {what}"):
            other.stream("dictionary").restore(path)
    with pytest.raises(MismatchError, match=r"same method with other parameters: capacity 512, not 9; weight 0\.5, "):
        one.stream("dictionary:capacity=9,weight=1").restore(path)
    with pytest.raises(MismatchError, match='another method: name "dictionary", not "tanl"; restore'):
        one.stream("tanl").restore(path)
    with pytest.raises(MismatchError, match="another learn first"):
        one.stream(learn_first=True).restore(path)
    with pytest.raises(UsageError, match="no such file"):
        stream.restore(tmp_path / "none.stream")
    one.save(tmp_path / "my.guard")
    with pytest.raises(MismatchError, match="is a guard, expected a stream"):
        stream.restore(tmp_path / "my.guard")
    (tmp_path / "cut.stream").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MismatchError, match="damaged"):
        stream.restore(tmp_path / "cut.stream")
    assert stream.seen == 30


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_snapshot_are_known_again_and_those_of_one_run_count_as_new(tmp_path, method):
    one, vectors, path = guard(), colours(40, known=0.5), tmp_path / "memory.stream"
    stream = one.stream(method)
    stream.check_vectors(np.concatenate([vectors, vectors]))
    assert stream.seen_again == 0
    stream.snapshot(path)
    later = one.stream(method)
    later.restore(path)
    later.check_vectors(vectors[:7])
    later.check_vectors(colours(40, seed=4))
    assert (later.seen, later.seen_again) == (127, 7)
    later.reset()
    later.check_vectors(vectors)
    assert (later.seen, later.seen_again) == (40, 0)


def test_a_snapshot_without_prints_is_an_older_one_and_knows_no_image_again(tmp_path):
    one, path = guard(), tmp_path / "memory.stream"
    stream = one.stream()
    stream.check_vectors(colours(30))
    stream.snapshot(path)
    about, arrays = stored.load(path, "stream")
    assert len(arrays.pop("seen")) == 30
    stored.save(path, "stream", about, arrays)
    later = one.stream()
    later.restore(path)
    assert scores(later.check_vectors(colours(30))) == scores(stream.check_vectors(colours(30)))
    assert later.seen_again == 0
    stored.save(path, "stream", about, arrays | {"seen": np.zeros((2, 2), np.uint64)})
    with pytest.raises(MismatchError, match="damaged snapshot"):
        later.restore(path)


def test_what_cannot_be_is_refused():
    one = guard()
    for method, said in (
        ("nothing", "dictionary, tanl, adaneg"), ("dictionary:size=3", "capacity"), ("tanl:base=knn", "no parameter"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            one.stream(method)
    with pytest.raises(UsageError, match="batch"):
        one.stream(batch=0)
    with pytest.raises(UsageError, match="threshold"):
        one.stream(threshold=float("nan"))
    with pytest.raises(UsageError, match="negatives"):
        Guard(["red", "blue"], "toy", "max_logit").stream("tanl")
    with pytest.raises(UsageError, match="ids"):
        one.stream().check_vectors(colours(3), ["a"])


@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=12), st.integers(1, 7))
def test_batches_hold_so_many_vectors_and_lose_no_row(parts, size):
    rows = iter(range(1000))
    given_rows = []
    for part in parts:
        ids = [str(next(rows)) for _ in part]
        errors = tuple(None if good else "broken" for good in part)
        vectors = np.array([[float(id_)] for id_, good in zip(ids, part, strict=True) if good], np.float32)
        given_rows.append(Features(tuple(ids), errors, vectors.reshape(-1, 1)))
    cut = list(batches((one for one in given_rows if one.ids), size))
    assert [id_ for one in cut for id_ in one.ids] == [id_ for one in given_rows for id_ in one.ids]
    assert all(len(one.vectors) == size for one in cut[:-1])
    assert all(len(one.vectors) <= size for one in cut)
    for one in cut:
        read = [float(id_) for id_, error in zip(one.ids, one.errors, strict=True) if error is None]
        assert one.vectors.ravel().tolist() == read


def test_what_waits_goes_out_when_nothing_more_comes_for_now():
    def part(*ids):
        return Features(ids, (None,) * len(ids), np.ones((len(ids), 1), np.float32))

    cut = list(batches(iter([part("a", "b"), part(), part("c")]), 64))
    assert [one.ids for one in cut] == [("a", "b"), ("c",)]


def test_noise_images_are_pictures_of_nothing_and_always_the_same():
    first, again = noise_images(side=32), noise_images(side=32)
    assert len(first) == 15
    assert all((one == two).all() and one.shape == (32, 32, 3) and one.dtype == np.uint8
               for one, two in zip(first, again, strict=True))  # fmt: skip
    assert len({one.tobytes() for one in first}) == 15
    assert unit(np.stack(first).reshape(15, -1)).std(axis=0).mean() > 0


@pytest.mark.long
def test_a_burst_of_one_class_of_real_images_keeps_the_false_alarm_rate(dev):
    # docs/streaming.md: cats, dogs and cars; after a burst of one of them its other images raise no more alarms.
    folders = {name: sorted((dev / "pets_vehicles" / "id" / name).iterdir()) for name in ("cat", "dog", "car")}
    one = Guard(list(folders))
    one.calibrate([path for paths in folders.values() for path in paths[:20]], false_alarm_rate=0.05)
    for name, paths in folders.items():
        stream = one.stream()
        list(stream.scan(dev / "pets_vehicles" / "ood"))
        for _ in range(5):
            list(stream.scan(paths[20:40]))
        alarms = [row.is_ood for row in stream.scan(paths[40:])]
        assert np.mean(alarms) <= 0.25, name  # 20 images: 0.05 asked for
