"""Images are rows: whatever lies in a folder, each image is one verdict in the right place and the run ends."""

from __future__ import annotations

import builtins
import csv
import errno
import os
import shutil

import numpy as np
import pytest
from conftest import BLUE, RED, encoded, picture, save_picture, within

from outclass import Guard, UsageError

TIME = 20  # seconds after which a scan counts as waiting for something

needs_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file systems only")


def scan(source, **options):
    """All verdicts of a scan; fails, instead of hanging, when it waits for something. Returns (verdicts, scan)."""
    guard = Guard(["red", "blue"], encoder="toy", threshold=-0.9, **options)

    def run():
        rows = guard.scan(source)
        return list(rows), rows

    return within(TIME, run)


@pytest.fixture
def pipe():
    """Makes named pipes, and in the end lets go whoever waits for one."""
    made = []

    def make(path):
        os.mkfifo(path)
        made.append(path)
        return path

    yield make
    for path in made:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def ids(source):
    return [verdict.id for verdict in scan(source)[0]]


def by_id(source):
    verdicts, _ = scan(source)
    assert len({verdict.id for verdict in verdicts}) == len(verdicts)
    return {verdict.id: verdict for verdict in verdicts}


@pytest.fixture(scope="module")
def broken(dev):
    """(folder, verdicts, file -> expected)."""
    folder = dev / "broken"
    with open(folder / "EXPECTED.csv", encoding="utf-8", newline="") as file:
        expected = {row["file"]: row for row in csv.DictReader(file)}
    return folder, scan(folder), expected


def test_every_broken_or_odd_file_is_exactly_one_row(broken):
    _, (verdicts, _), expected = broken
    assert sorted(verdict.id for verdict in verdicts) == sorted(expected)


def test_rows_come_in_the_order_of_the_utf8_bytes(broken):
    _, (verdicts, _), expected = broken
    assert [verdict.id for verdict in verdicts] == sorted(expected, key=lambda name: name.encode())


def test_files_decode_or_fail_as_expected(broken):
    _, (verdicts, _), expected = broken
    for verdict in verdicts:
        wanted = expected[verdict.id]["pillow_result"]
        assert (verdict.error is None) == wanted.startswith("decodes"), (verdict.id, verdict.error, wanted)


def test_a_failed_row_has_an_error_of_one_line_and_nothing_else(broken):
    _, (verdicts, _), _ = broken
    failed = [verdict for verdict in verdicts if verdict.error is not None]
    assert failed
    for verdict in failed:
        assert verdict.error.strip()
        assert len(verdict.error.splitlines()) == 1
        assert {value for key, value in verdict.to_dict().items() if key not in ("id", "error")} == {None}


def test_a_scored_row_is_complete(broken):
    _, (verdicts, _), _ = broken
    for verdict in verdicts:
        if verdict.error is None:
            assert verdict.label in ("red", "blue")
            assert np.isfinite([verdict.ood_score, verdict.similarity]).all()
            assert verdict.is_ood in (True, False)


def test_counts_of_the_scan_agree_with_its_rows(broken):
    _, (verdicts, counts), _ = broken
    failed = sum(verdict.error is not None for verdict in verdicts)
    assert (counts.n, counts.n_failed) == (len(verdicts), failed)
    assert counts.n_id + counts.n_ood + counts.n_failed == counts.n
    assert counts.ignored == 1  # EXPECTED.csv itself


def test_the_broken_folder_scans_the_same_with_one_thread_and_with_eight(broken):
    folder, (verdicts, _), _ = broken
    for options in ({"threads": 1, "batch_size": 3}, {"threads": 8, "batch_size": 1}):
        again = scan(folder, **options)[0]
        assert [(one.id, one.label, one.error) for one in again] == [(one.id, one.label, one.error) for one in verdicts]
        scores = [[one.ood_score for one in rows if one.error is None] for rows in (again, verdicts)]
        np.testing.assert_allclose(*scores, atol=1e-6)


@needs_posix
@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\rb.png", "tab\t.png", " .png", "'\";$(x).png", "%s{}.png", "\x1b[31m.png"]
)
def test_a_hostile_name_is_kept_as_it_is(tmp_path, name):
    save_picture(tmp_path / name)
    assert ids(tmp_path) == [name]


@needs_posix
def test_a_name_that_is_no_utf8_becomes_a_readable_id(tmp_path):
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/caf\xe9.png", "wb") as file:
            file.write(encoded(picture()))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (verdict,) = scan(tmp_path)[0]
    assert verdict.error is None
    verdict.id.encode("utf-8")
    assert verdict.id == r"caf\xe9.png"


def test_an_empty_folder_named_like_an_image_is_no_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    save_picture(tmp_path / "z.png")
    assert ids(tmp_path) == ["z.png"]


def test_a_folder_named_like_an_image_is_walked(tmp_path):
    save_picture(tmp_path / "folder.jpg" / "inside.png")
    assert ids(tmp_path) == ["folder.jpg/inside.png"]


@needs_posix
def test_a_dangling_link_is_a_row_with_an_error(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    save_picture(tmp_path / "red.png")
    rows = by_id(tmp_path)
    assert list(rows) == ["gone.jpg", "red.png"]
    assert rows["gone.jpg"].error
    assert rows["red.png"].error is None


@needs_posix
def test_a_pipe_is_a_row_with_an_error_and_is_not_waited_for(pipe, tmp_path):
    pipe(tmp_path / "pipe.jpg")
    pipe(tmp_path / "pipe-without-extension")
    save_picture(tmp_path / "red.png")
    rows = by_id(tmp_path)
    assert list(rows) == ["pipe.jpg", "red.png"]
    assert "regular file" in rows["pipe.jpg"].error


@needs_posix
def test_a_pipe_in_a_list_is_a_row_with_an_error(pipe, tmp_path):
    pipe(tmp_path / "pipe.jpg")
    (verdict,) = scan([tmp_path / "pipe.jpg"])[0]
    assert verdict.error


@needs_posix
def test_links_in_a_circle_end(tmp_path):
    save_picture(tmp_path / "a" / "red.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "me.jpg").symlink_to(tmp_path / "me.jpg")
    rows = by_id(tmp_path)
    assert list(rows) == ["a/red.png", "me.jpg"]
    assert rows["me.jpg"].error


@needs_posix
def test_a_linked_image_and_a_linked_folder_are_read(tmp_path):
    save_picture(tmp_path / "elsewhere" / "red.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "elsewhere" / "red.png")
    (root / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    rows = by_id(root)
    assert list(rows) == ["link.png", "sub/red.png"]
    assert all(verdict.error is None for verdict in rows.values())


def test_a_file_without_permission_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in ("a.png", "secret.png", "z.png"):
        save_picture(tmp_path / name)
    real = builtins.open

    def deny(file, *args, **options):
        if str(file).endswith("secret.png"):
            raise PermissionError(errno.EACCES, "Permission denied", file)
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", deny)
    rows = by_id(tmp_path)
    assert list(rows) == ["a.png", "secret.png", "z.png"]
    assert "Permission" in rows["secret.png"].error
    assert rows["z.png"].error is None


def test_a_folder_without_permission_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    save_picture(tmp_path / "locked" / "red.png")
    save_picture(tmp_path / "open" / "red.png")
    real = os.scandir

    def deny(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", deny)
    rows = by_id(tmp_path)
    assert list(rows) == ["locked", "open/red.png"]
    assert rows["locked"].error


def test_a_file_that_vanishes_during_the_scan_is_a_row(tmp_path):
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / name)
    from outclass.images.sources import open_source

    items = list(open_source(tmp_path))
    (tmp_path / "b.png").unlink()
    verdicts, _ = scan((item.id, item.source) for item in items)
    assert [(verdict.id, verdict.error is None) for verdict in verdicts] == [("a.png", True), ("b.png", False)]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in (".hidden.png", ".git/red.png", "seen/.also.png", "seen/red.png"):
        save_picture(tmp_path / name)
    assert ids(tmp_path) == ["seen/red.png"]


def test_the_order_is_that_of_the_paths_bytes_also_across_folders(tmp_path):
    names = [
        "a.png",
        "a/b.png",
        "a/z.png",
        "a0.png",
        "B.png",
        "b.png",
        "a-b/c.png",
        "é.png",
        "日.png",
        "😀.png",
        "z.png",
    ]
    for name in reversed(names):
        save_picture(tmp_path / name)
    assert ids(tmp_path) == sorted(names, key=lambda name: name.encode())


def test_other_files_are_counted_and_not_read(tmp_path):
    save_picture(tmp_path / "red.png")
    for name, text in (("a.txt", "x"), ("b.csv", "BMW,1"), ("c", "plain"), ("empty", ""), ("d.md", "P1 first")):
        (tmp_path / name).write_text(text)
    verdicts, counts = scan(tmp_path)
    assert [verdict.id for verdict in verdicts] == ["red.png"]
    assert counts.ignored == 5


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_an_image_without_an_extension_is_found_by_its_first_bytes(tmp_path, format):
    (tmp_path / "picture").write_bytes(encoded(picture(), format))
    (tmp_path / "picture.data").write_bytes(encoded(picture(), format))
    assert ids(tmp_path) == ["picture", "picture.data"]


def test_an_empty_folder_has_no_rows(tmp_path):
    assert ids(tmp_path) == []


def test_a_missing_folder_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        scan(tmp_path / "nowhere")


def test_a_pattern_finds_files_and_ids_start_where_it_does(tmp_path):
    for name in ("a/red.png", "b/red.png", "b/deep/red.png", "b/x.jpg.d/red.png"):
        save_picture(tmp_path / name)
    assert ids(f"{tmp_path}/*/red.png") == ["a/red.png", "b/red.png"]
    assert ids(f"{tmp_path}/b/**/*.png") == ["deep/red.png", "red.png", "x.jpg.d/red.png"]


def test_a_pattern_that_finds_nothing_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="pattern"):
        scan(f"{tmp_path}/*.jpg")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    save_picture(tmp_path / "photos[1]" / "red.png")
    assert ids(tmp_path / "photos[1]") == ["red.png"]


def test_an_address_is_refused_and_not_fetched(tmp_path):
    with pytest.raises(UsageError, match="download"):
        scan("https://example.com/photos")
    verdicts, _ = scan(["https://example.com/a.jpg", save_picture(tmp_path / "red.png")])
    assert "download" in verdicts[0].error
    assert verdicts[0].id == "https://example.com/a.jpg"
    assert verdicts[1].error is None


def test_doubles_in_a_list_are_a_row_each(tmp_path):
    path = str(save_picture(tmp_path / "red.png"))
    assert ids([path, path, path]) == [path] * 3


def test_a_generator_of_everything_that_can_be_an_image_is_scanned_lazily(tmp_path):
    path = save_picture(tmp_path / "red.png")
    rgb = np.full((9, 9, 3), RED, np.uint8)
    everything = [path, str(path), encoded(picture()), bytearray(encoded(picture())), picture(), rgb, ("mine", rgb)]
    verdicts, _ = scan(one for one in everything)
    assert [verdict.error for verdict in verdicts] == [None] * 7
    assert {verdict.label for verdict in verdicts} == {"red"}
    assert [verdict.id for verdict in verdicts][2:] == ["2", "3", "4", "5", "mine"]


@pytest.mark.parametrize("bad", [None, 7, 1.5, {}, b"", b"x", b"P", np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_image_in_a_list_is_a_row_with_an_error(bad):
    verdicts, _ = scan([picture(BLUE), bad, picture(RED)])
    assert [verdict.error is None for verdict in verdicts] == [True, False, True]
    assert [verdict.label for verdict in verdicts] == ["blue", None, "red"]


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_an_empty_array_is_a_row_with_an_error(shape):
    assert scan([np.zeros(shape, np.uint8)])[0][0].error


@pytest.mark.parametrize("bad", [7, None, b"x", picture()])
def test_a_source_that_is_none_is_wrong_usage(bad):
    with pytest.raises(UsageError):
        scan(bad)


def test_a_single_array_is_not_taken_for_a_list_of_images():
    with pytest.raises(UsageError, match="check"):
        scan(np.zeros((20, 30, 3), np.uint8))


def test_a_broken_file_does_not_disturb_its_neighbours(broken, tmp_path):
    folder, _, _ = broken
    for place in range(30):
        if place % 3 == 0:
            shutil.copy(folder / "truncated_half.jpg", tmp_path / f"{place:02}.jpg")
        else:
            save_picture(tmp_path / f"{place:02}.png", RED if place % 3 == 1 else BLUE)
    labels = [verdict.label for verdict in scan(tmp_path, threads=4, batch_size=4)[0]]
    assert labels == [None, "red", "blue"] * 10
