"""The ImageNet protocol: sets by their folders, 1000 classes in their order, published figures as they are printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, save_picture

from outclass import evaluate
from outclass.benchmark.protocols import IMAGENET, NAMES, PROTOCOLS, imagenet_classes, imagenet_folders
from outclass.encoders.toy import ToyEncoder
from outclass.errors import UsageError
from outclass.words.classes import ClassSet

SETS = ("iNaturalist", "SUN", "Places", "Textures")

# Read off shared/design/methods.md 5.1 again, by another pair of eyes: (method, side that is positive), then
# FPR95 / AUROC of the four sets and their mean, in per cent; 0 = not printed, or not found in a source.
PUBLISHED = {
    ("mcm (T = 1)", "ID"): "30.91/94.61 37.59/92.57 44.69/89.77 57.77/86.11 42.74/90.77",
    ("mcm (T = 1)", "OOD"): "24.20/0 29.58/0 46.73/0 50.20/0 37.68/0",
    ("gl_mcm", "ID"): "15.2/96.7 30.4/93.1 38.9/89.9 57.9/83.6 35.5/90.8",
    ("neglabel", "ID"): "1.91/99.49 20.53/95.49 35.59/91.64 43.56/90.22 25.40/94.21",
    ("neglabel", "OOD"): "1.24/0 21.40/0 38.60/0 38.60/0 24.96/0",
    ("csp", "ID"): "1.54/0 13.66/0 29.32/0 25.52/0 17.51/0",
}

# Places of classes in ImageNet-1k, from memory of the list.
PLACES = {
    0: "tench", 1: "goldfish", 151: "Chihuahua", 207: "Golden Retriever", 281: "tabby cat", 340: "zebra",
    388: "giant panda", 504: "coffee mug", 717: "pickup truck", 779: "school bus", 864: "tow truck", 934: "hot dog",
    954: "banana", 963: "pizza", 971: "bubble", 980: "volcano", 999: "toilet paper",
}  # fmt: skip


# --- sets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders",
    [
        ["/data/iNaturalist", "/data/SUN", "/data/Places", "/data/Textures"],
        ["Textures/", "./places", "sun", "INATURALIST"],
        ["/ood/iNaturalist/images", "/ood/SUN/images", "/ood/Places/images", "/ood/Textures/images"],
        ["places365", "SUN397", "iNaturalist_10k", "my-textures"],
        ["/Places/SUN", "/Places/iNaturalist", "/Places/places", "/Places/textures"],
    ],
)
def test_folders_are_told_by_their_names_in_any_order(folders: list[str]) -> None:
    found = IMAGENET.sets(folders)
    assert tuple(found) == SETS
    assert sorted(found.values()) == sorted(folders)
    for name, folder in found.items():
        assert name.casefold() in folder.casefold()


@pytest.mark.parametrize("missing", SETS)
def test_a_missing_set_is_named(missing: str) -> None:
    with pytest.raises(UsageError, match=f"also needs --ood folders named {missing}$"):
        IMAGENET.sets([name for name in SETS if name != missing])


@pytest.mark.parametrize("wrong", ["digits", "more/SUN", "sun_and_places"])
def test_a_folder_that_is_no_set_of_its_own_is_an_error(wrong: str) -> None:
    with pytest.raises(UsageError, match=f"cannot tell which set .*{wrong}"):
        IMAGENET.sets([*SETS, wrong])


# --- classes ------------------------------------------------------------------------------------------------------


def test_a_thousand_classes_each_name_once() -> None:
    classes = imagenet_classes()
    assert len(classes) == len({one.name.casefold() for one in classes}) == 1000
    assert all(one.name and one.name == one.name.strip() and ";" not in one.name for one in classes)
    assert len(ClassSet.build(classes, ToyEncoder()).names) == 1000  # a guard takes them: nothing doubled


def test_classes_stand_in_the_order_of_imagenet() -> None:
    names = [one.name for one in imagenet_classes()]
    assert {place: names[place] for place in PLACES} == PLACES
    assert "crane" in names[134]
    assert "crane" in names[517]


def test_classes_have_the_order_of_their_wordnet_ids(dev: Path) -> None:
    """Files of the dev set are called ``<WordNet id>_<name>.jpg``; ImageNet numbers its classes by these ids."""
    places: dict[str, int] = {}
    for place, line in enumerate(NAMES.read_text("utf-8").splitlines()):
        for name in line.casefold().split("; "):
            places.setdefault(name, place)
    named = sorted(path.stem.split("_", 1) for path in (dev / "imagenet1k_near200" / "images").glob("n*_*.jpg"))
    found = [places[key] for _, name in named if (key := name.replace("_", " ").casefold()) in places]
    assert len(found) > 150
    assert found == sorted(found)


def test_a_thousand_folders_of_wordnet_ids_are_the_classes_in_order(tmp_path: Path) -> None:
    assert imagenet_folders(str(tmp_path / "none")) == {}
    ids = [f"n{number:08}" for number in np.random.default_rng(0).choice(10**8, 1000, replace=False)]
    for wnid in ids[:-1]:
        (tmp_path / wnid).mkdir()
    assert imagenet_folders(str(tmp_path)) == {}  # 999 folders are another data set
    (tmp_path / ids[-1]).mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "n99999999.txt").write_text("a file")
    found = imagenet_folders(str(tmp_path))
    assert [found[wnid] for wnid in sorted(ids)] == [one.name for one in imagenet_classes()]


def test_images_in_folders_of_wordnet_ids_get_their_class(tmp_path: Path) -> None:
    names = [one.name for one in imagenet_classes()]
    wnids = [f"n{number:08}" for number in range(1000)]
    for wnid in wnids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
    for at, colour in ((7, RED), (999, BLUE)):
        save_picture(tmp_path / "val" / wnids[at] / "image.png", colour)
    save_picture(tmp_path / "ood" / "0.png", GREEN)
    found = evaluate(
        str(tmp_path / "val"), str(tmp_path / "ood"), classes=imagenet_classes(), detectors="max_logit",
        folders=imagenet_folders(str(tmp_path / "val")), encoder="toy",
    )  # fmt: skip
    assert found.labels is not None
    assert [found.class_set.names[at] for at in found.labels] == [names[7], names[999]]


# --- published figures --------------------------------------------------------------------------------------------


def test_published_figures_are_those_of_the_sources() -> None:
    assert {(one.method, one.convention) for one in IMAGENET.published} == set(PUBLISHED)
    for one in IMAGENET.published:
        cells = [tuple(map(float, cell.split("/"))) for cell in PUBLISHED[one.method, one.convention].split()]
        wanted = {name: (fpr, area or None) for name, (fpr, area) in zip((*SETS, "mean"), cells, strict=True)}
        assert one.figures == wanted, one.method
        assert one.source


def test_a_published_mean_is_the_mean_of_its_sets() -> None:
    for one in IMAGENET.published:
        for part in (0, 1):
            values = [one.figures[name][part] for name in (*SETS, "mean")]
            if None not in values:
                # Reproductions print means of unrounded figures, GalLoP one digit; a wrong digit would be further off.
                assert np.mean(values[:4]) == pytest.approx(values[4], abs=0.11), (one.method, one.convention)


def test_lower_fpr_and_higher_auroc_are_better_in_every_published_row() -> None:
    """Columns that were swapped would break this: a set that is easier has the lower FPR95 and the higher AUROC."""
    for one in IMAGENET.published:
        pairs = sorted(one.figures[name] for name in SETS)
        areas = [area for _, area in pairs if area is not None]
        assert areas == sorted(areas, reverse=True), one.method


def test_published_cells_read_as_those_that_are_measured() -> None:
    head, lines = IMAGENET.published_cells()
    assert [name.split(" ")[0] for name in head[1:6]] == [*SETS, "mean"]
    assert "AUROC / FPR95 in %" in IMAGENET.about
    assert {len(line) for line in lines} == {len(head)}
    neglabel, csp = (next(line for line in lines if line[0] == name) for name in ("neglabel", "csp"))
    assert neglabel[1:6] == ["0.995 / 1.9", "0.955 / 20.5", "0.916 / 35.6", "0.902 / 43.6", "0.942 / 25.4"]
    assert csp[1] == "- / 1.5"  # its AUROC was found in no source
    assert {line[head.index("positive")] for line in lines} == {"ID", "OOD"}


def test_the_protocol_has_its_name() -> None:
    assert PROTOCOLS["imagenet"] is IMAGENET
    assert IMAGENET.ood_sets == SETS
    assert "ViT-B/16" in IMAGENET.about
