"""What first went wrong with outclass eval: hostile names, odd folders, few images, narrow terminals."""

import os
import re

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, command, run, save_picture
from test_benchmark import QUICK, Spy, _toy_colours_differ, known, measured, row_of, rows_of, sets, shades, spy  # noqa: F401

from outclass import evaluate
from outclass.benchmark.page import build_page
from outclass.benchmark.protocols import IMAGENET
from outclass.benchmark.table import to_markdown
from outclass.errors import UsageError

TOY = ("--encoder", "toy", "-d", "max_logit,knn")


def fill(folder, colour, n):
    folder.mkdir(parents=True, exist_ok=True)
    for id_, image in shades(colour, n):
        image.save(folder / id_)


@pytest.fixture
def here(tmp_path, monkeypatch):
    fill(tmp_path / "pets" / "red", RED, 22)
    fill(tmp_path / "pets" / "blue", BLUE, 22)
    fill(tmp_path / "others", GREEN, 12)
    fill(tmp_path / "greys", (120, 120, 120), 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_example_of_the_help_works(here):
    done = run("eval", "--id", "pets", "--ood", "others", *TOY)
    assert done.exit_code == 0, done.exception


def test_a_flat_id_folder_is_not_a_class_name(here):
    with pytest.raises(UsageError, match="class"):
        evaluate("others", ["greys"], detectors="max_logit", encoder="toy")


def test_a_set_called_mean(here):
    fill(here / "x" / "mean", GREEN, 10)
    found = evaluate("./pets", [str(here / "x" / "mean"), "greys"], detectors="max_logit", encoder="toy")
    build_page(found, "max_logit", {}).render()


def test_all_leaves_out_negative_detectors_without_negatives():
    found = measured(detectors="all", negatives="none")
    assert "negatives" in found.left_out["neglabel"]


def test_all_leaves_out_learners_with_too_few_images():
    found = measured(shades(RED, 1, "red/") + shades(BLUE, 1, "blue/"), detectors="all", negatives=["green"])
    assert "knn" in found.left_out


def test_no_ood_set_is_a_usage_error():
    with pytest.raises(UsageError, match="no OOD images"):
        evaluate(known(), [], classes=["red", "blue"], encoder="toy", detectors="max_logit")


def test_copies_of_an_image_are_not_scored_by_what_learned_from_it(spy):  # noqa: F811
    """The same photograph under two names falls into two folds: knn scores it against itself."""
    images = known(20)
    images += [(id_.replace(".png", "_copy.png"), image) for id_, image in images]
    measured(images, detectors="spy")
    for learned, scored in spy:
        assert not learned & set(scored)


def test_fit_folder_uses_the_mapping_of_folders(spy, monkeypatch):  # noqa: F811
    """`--protocol imagenet --fit train` (folders of WordNet ids): classes of --fit are guessed, silently."""
    seen = []
    real = Spy.fit

    def fit(self, context):
        seen.append(context.id_labels)
        return real(self, context)

    monkeypatch.setattr(Spy, "fit", fit)
    other = shades((60, 150, 230), 20, "n1/")  # bluish, yet their folder says red
    measured(
        shades(RED, 20, "n1/") + shades(BLUE, 20, "n2/"),
        detectors="spy",
        folders={"n1": "red", "n2": "blue"},
        fit=other,
    )
    assert set(seen[0]) == {0}


def test_id_and_ood_folders_of_one_name(here):
    fill(here / "a" / "photos" / "red", RED, 22)
    fill(here / "a" / "photos" / "blue", BLUE, 22)
    fill(here / "b" / "photos", GREEN, 5)
    fill(here / "b" / "photos" / "red", (150, 60, 60), 5)
    found = evaluate(str(here / "a/photos"), [str(here / "b/photos")], detectors="max_logit", encoder="toy")
    page = build_page(found, "max_logit", {})
    path = page._find(f"{found.known.name}/red/000.png")  # of a mistake among the ID images
    assert path == str(here / "a/photos/red/000.png")
    assert found.known.name != found.unknown[0].name


def test_id_folder_given_as_ood(here):
    with pytest.raises(UsageError):
        evaluate("./pets", ["./pets"], detectors="max_logit", encoder="toy")


def test_markdown_of_a_name_with_a_newline():
    text = to_markdown(measured(ood={"a\nb": sets()["far"]}).rows, {})
    table, _, _ = text.partition("\n\n")
    assert all(line.startswith("|") and line.endswith("|") for line in table.splitlines()), text


def test_a_folder_with_undecodable_bytes(here):
    os.mkdir(b"bad\xff")
    save_picture(here / "p.png", GREEN)
    os.rename(b"p.png", b"bad\xff/p.png")
    done = command("eval", "--id", "./pets", "--ood", b"bad\xff".decode(errors="surrogateescape"), *TOY, "-o", "out")
    assert done.returncode == 0, done.stderr[-300:]


def test_a_folder_name_does_not_colour_the_terminal(here):
    fill(here / "esc\x1b[31mred", GREEN, 5)
    done = run("eval", "--id", "./pets", "--ood", "esc\x1b[31mred", *TOY)
    assert "\x1b[31mred" not in done.stdout


def test_exit_code_three_when_images_could_not_be_read(here):
    (here / "others" / "bad.png").write_bytes(b"none")
    assert run("eval", "--id", "./pets", "--ood", "others", *TOY).exit_code == 3


def test_show_and_out_are_checked_before_images_are_read(here):
    (here / "file").write_text("")
    for options in (["--show", "nope", "-o", "out"], ["-o", "file/out"]):
        done = run("eval", "--id", "./pets", "--ood", "others", *TOY, *options)
        assert isinstance(done.exception, UsageError)
        assert done.stdout == "", options  # the whole measurement ran, and is thrown away


def test_operating_point_on_the_page_leaves_calibration_images_out():
    images = known(30)
    found = measured(images, detectors="max_logit", false_alarm_rate=0.3)
    scores = found.scores["max_logit"].known
    chosen_on, tried_on = scores[~found.half], scores[found.half]
    threshold = np.sort(chosen_on)[-(-7 * (len(chosen_on) + 1) // 10) - 1]
    apart, together = 100 * (tried_on > threshold).mean(), 100 * (scores > threshold).mean()
    assert abs(apart - together) > 0.5
    html = build_page(found, "max_logit", {}).render()
    shown = re.findall(r'\(calibrated\)</td><td class="n">([\d.]+)', html)
    assert [float(one) for one in shown] == pytest.approx([apart] * len(shown), abs=0.06)


def test_protocol_folders_below_a_home_called_sunny():
    IMAGENET.sets([f"/home/sunny/{name}/images" for name in IMAGENET.ood_sets])


def test_all_in_a_list_is_all(monkeypatch):
    import sys

    for module in ("sklearn", *(name for name in sys.modules if name.startswith("sklearn."))):
        monkeypatch.setitem(sys.modules, module, None)
    found = measured(detectors=["all"], negatives=["green"])
    assert "mahalanobis" in found.left_out


def test_what_was_left_out_of_fit_is_reported(here):
    fill(here / "more" / "red", (250, 120, 150), 20)
    fill(here / "more" / "blue", (60, 150, 230), 20)
    (here / "more" / "bad.png").write_bytes(b"none")
    done = run("eval", "--id", "./pets", "--ood", "others", *TOY, "--fit", "./more", "-o", "out")
    assert done.exit_code in (0, 3), done.exception
    assert "bad.png" in done.stderr + (here / "out" / "eval.json").read_text()


def test_one_image_is_an_image(here):
    (here / "others" / "bad.png").write_bytes(b"none")
    assert "1 images" not in run("eval", "--id", "./pets", "--ood", "others", *TOY).stderr


def test_table_of_many_detectors_at_80_columns(here):
    pytest.importorskip("sklearn")
    import pty
    import subprocess
    import sys

    names = ["imagenet1k_near200", "textures_far", "scenes_far", "digits_far", "art_far"]
    for name in names:
        fill(here / name, GREEN, 3)
    master, slave = pty.openpty()
    words = [word for name in names for word in ("--ood", name)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "outclass",
            "eval",
            "--id",
            "./pets",
            *words,
            "-e",
            "toy",
            "-d",
            "mahalanobis,max_logit",
        ],
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )
    process.wait()
    os.close(slave)
    text = b""
    try:
        while chunk := os.read(master, 65536):
            text += chunk
    except OSError:
        pass
    assert b"mahalanobis" in text, text.decode()
