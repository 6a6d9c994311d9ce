"""A watched folder: every image once when it is whole, again when it changes, in bounded memory, until it is closed."""

from __future__ import annotations

import gc
import itertools
import os
import random
import threading
import tracemalloc

import pytest
from conftest import BLUE, GREEN, RED, encoded, picture, save_picture, within
from test_watch_command import arrive

from outclass import Guard, UsageError
from outclass.images.sources import Kept, open_source
from outclass.images.watch import Watch

QUICK = 0.01  # seconds between looks
TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")


def looks(watch):
    """What each look gives, at once: nobody waits between them."""
    watch.every = QUICK
    for images in watch.rounds():
        yield [item.id for item in images]


def test_what_lies_there_comes_first_and_then_what_is_added(photos):
    seen = looks(watch := Watch(photos))
    assert next(seen) == []  # nothing has settled yet
    assert next(seen) == [item.id for item in open_source(photos)] == ["a-red.png", "b-green.png", "c/blue.png"]
    assert next(seen) == []
    save_picture(photos / "new" / "z.png")
    save_picture(photos / "a.png")
    assert [next(seen), next(seen), next(seen)] == [[], ["a.png", "new/z.png"], []]
    assert watch.ignored == 1


def test_a_file_that_is_still_written_is_not_taken(photos):
    seen = looks(Watch(photos))
    list(itertools.islice(seen, 3))
    data = encoded(picture(BLUE))
    with open(photos / "slow.png", "wb") as file:
        for byte in range(0, len(data), 30):
            file.write(data[byte : byte + 30])
            file.flush()
            assert next(seen) == []
    assert [next(seen), next(seen)] == [["slow.png"], []]


def test_a_file_that_grows_between_the_look_and_its_turn_waits(photos):
    rounds = Watch(photos, QUICK).rounds()
    list(next(rounds))
    images = next(rounds)
    assert next(images).id == "a-red.png"
    with open(photos / "b-green.png", "ab") as file:
        file.write(b"more")
    assert [item.id for item in images] == ["c/blue.png"]
    assert [[item.id for item in next(rounds)] for _ in range(3)] == [[], ["b-green.png"], []]


def test_what_was_renamed_into_place_is_taken_at_the_second_look(photos):
    seen = looks(Watch(photos))
    list(itertools.islice(seen, 2))
    save_picture(photos.parent / "other.png")
    os.rename(photos.parent / "other.png", photos / "other.png")
    assert [next(seen), next(seen)] == [[], ["other.png"]]


def test_a_changed_image_comes_again_and_one_with_the_same_size_too(photos):
    seen = looks(Watch(photos))
    list(itertools.islice(seen, 2))
    path = photos / "a-red.png"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [next(seen), next(seen), next(seen)] == [[], ["a-red.png"], []]
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [next(seen), next(seen), next(seen)] == [[], ["a-red.png"], []]


def test_what_vanished_is_forgotten_and_new_when_it_comes_back(photos):
    watch = Watch(photos)
    seen = looks(watch)
    list(itertools.islice(seen, 2))
    os.rename(photos / "c", photos.parent / "c")
    assert [next(seen), next(seen)] == [[], []]
    os.rename(photos.parent / "c", photos / "c")
    assert [next(seen), next(seen), next(seen)] == [[], ["c/blue.png"], []]


def test_a_text_that_becomes_an_image_is_taken_then(photos):
    seen = looks(watch := Watch(photos))
    list(itertools.islice(seen, 2))
    (photos / "notes.md").write_bytes(encoded(picture(RED)))
    assert [next(seen), next(seen), next(seen)] == [[], ["notes.md"], []]
    assert watch.ignored == 1


def test_a_link_that_leads_nowhere_is_a_row_and_an_image_when_it_leads_somewhere(photos, toy_guard):
    (photos / "link.png").symlink_to(photos.parent / "later.png")
    watch = Watch(photos, QUICK)
    with toy_guard.scan(watch) as scan:
        first = list(itertools.islice(scan, 4))
        assert [row.id for row in first if row.error] == ["link.png"]
        arrive(photos.parent / "later.png", BLUE)
        assert within(20, lambda: next(scan)).label == "blue"


def test_a_folder_that_cannot_be_listed_for_a_while_is_said_and_its_images_do_not_come_twice(photos, monkeypatch):
    seen = looks(Watch(photos))
    list(itertools.islice(seen, 2))
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("c"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        assert [next(seen), next(seen), next(seen)] == [[], ["c"], []]
    assert [next(seen), next(seen), next(seen)] == [[], [], []]


def test_a_folder_that_is_away_for_a_while_is_waited_for(photos, caplog):
    seen = looks(Watch(photos))
    list(itertools.islice(seen, 2))
    os.rename(photos, photos.parent / "away")
    assert [next(seen), next(seen)] == [[], []]
    assert "cannot list" in caplog.text
    os.rename(photos.parent / "away", photos)
    assert [next(seen), next(seen)] == [[], []], "nothing has changed, so nothing comes again"
    save_picture(photos / "z.png")
    assert [next(seen), next(seen)] == [[], ["z.png"]]


def test_any_sequence_of_changes_ends_with_every_version_judged_once(tmp_path):
    chance = random.Random(4)
    folder = tmp_path / "in"
    folder.mkdir()
    seen = looks(Watch(folder))
    versions, taken = {}, []
    for _ in range(150):
        name = f"{chance.randrange(8)}.png"
        if chance.random() < 0.3 and (folder / name).exists():
            (folder / name).unlink()
        elif chance.random() < 0.6:
            (folder / name).write_bytes(b"x" * chance.randrange(1, 10**6))
        before = len(taken)
        taken += next(seen)
        assert len(set(taken[before:])) == len(taken[before:])
        for id in taken[before:]:
            now = os.stat(folder / id)
            stamp = (now.st_size, now.st_mtime_ns)
            assert versions.get(id) != stamp, "the same version twice"
            versions[id] = stamp
        for id in set(versions) - {path.name for path in folder.iterdir()}:
            del versions[id]
    for _ in range(2):
        for id in next(seen):
            now = os.stat(folder / id)
            versions[id] = (now.st_size, now.st_mtime_ns)
    lying = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert {id: versions[id] for id in lying} == lying


def test_memory_is_that_of_the_files_that_lie_there_however_many_came(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    watch = Watch(folder, 1e-6)
    rounds = watch.rounds()

    def come_and_go(count):
        for number in range(count):
            path = folder / f"{number:08}.png"
            path.touch()
            list(next(rounds)), list(next(rounds))
            path.unlink()

    come_and_go(20)
    tracemalloc.start()
    come_and_go(200)
    grown, _ = tracemalloc.get_traced_memory()
    for number in range(2000):
        with open(f"{folder}/kept-{number:08}.png", "wb"):
            pass
    list(next(rounds))
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000
    assert (held - grown) / 2000 < 400, "bytes a file"


# Scans


def test_verdicts_come_at_once_though_no_batch_is_full(photos, toy_guard):
    watch = Watch(photos, QUICK)
    scan = toy_guard.scan(watch)

    def some(count):
        return [(row.id, row.label, row.is_ood) for row in within(20, lambda: list(itertools.islice(scan, count)))]

    assert some(3) == [("a-red.png", "red", False), ("b-green.png", "blue", True), ("c/blue.png", "blue", False)]
    arrive(photos / "d.png", BLUE)
    assert some(1) == [("d.png", "blue", False)]
    arrive(photos / "d.png", GREEN, (25, 20))
    assert [row[::2] for row in some(1)] == [("d.png", True)]
    watch.close()
    assert within(20, lambda: list(scan)) == []
    assert (scan.n, scan.n_ood, scan.ignored) == (5, 2, 1)


def test_the_verdicts_are_those_of_a_scan_of_the_folder(dev, lite):
    guard = Guard(["tench", "church", "cat"], lite, batch_size=16)
    folder = dev / "broken"
    watch = Watch(folder, QUICK)
    expected = list(guard.scan(folder))
    with guard.scan(watch) as scan:
        assert within(60, lambda: list(itertools.islice(scan, len(expected)))) == expected


def test_a_closed_watch_judges_what_it_handed_out_and_ends(photos, toy_guard):
    for number in range(300):
        save_picture(photos / f"{number}.png")
    watch = Watch(photos, QUICK)
    scan = toy_guard.scan(watch)
    next(scan)
    threading.Timer(0, watch.close).start()
    rows = within(20, lambda: list(scan))
    assert [row.id for row in rows] == [item.id for item in open_source(photos)][1 : len(rows) + 1]
    assert within(5, lambda: list(toy_guard.scan(watch))) == [], "closed is closed"


def test_kept_items_of_a_watch_come_by_rounds_too(photos, toy_guard):
    watch = Watch(photos, QUICK)
    kept = Kept(watch)
    again, scan = kept.again(), toy_guard.scan(kept)
    assert [(next(scan).id, next(again).id) for _ in range(3)][-1] == ("c/blue.png", "c/blue.png")
    watch.close()
    assert within(20, lambda: list(scan)) == []


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_time_between_looks_that_is_none_is_refused(photos, every):
    with pytest.raises(UsageError, match="every"):
        Watch(photos, every)


def test_only_a_folder_is_watched(photos):
    for path in (photos / "a-red.png", photos / "none"):
        with pytest.raises(UsageError, match="only a folder"):
            Watch(path)
