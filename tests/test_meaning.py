"""Do high scores mean OOD? Planted clusters for every detector, real photographs for the bundled encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, score, unit

from outclass import Context, Guard, MissingExtraError, all_detectors, make_detector
from outclass.defaults import choose_detector, mining
from outclass.detectors.distance import KNN
from outclass.detectors.logits import MaxLogit
from outclass.judge import context as judged_with
from outclass.words.classes import ClassSet
from outclass.words.negatives import mine

NAMES = list(all_detectors())
LEARNING = [name for name in NAMES if "id_vectors" in all_detectors()[name].info.needs]
DIM, CLASSES, COSINE = 512, 5, 0.22


def planted(seed, classes=CLASSES):
    """Context, ID rows and two kinds of OOD rows on the unit sphere of DIM dimensions.

    As with CLIP-like encoders an image is far from its own text (cosine 0.22) and farther from the others: ID rows lean
    towards one class, OOD rows towards a word outside the classes, or towards nothing.
    """
    generator = np.random.default_rng(seed)
    directions = unit(generator.standard_normal((classes + 40, DIM)))
    text, other = directions[:classes], directions[classes:]

    def around(centres):
        return unit(COSINE * centres + (1 - COSINE) * unit(generator.standard_normal(centres.shape)))

    names, labels = tuple(f"class {row}" for row in range(classes)), generator.integers(0, classes, 200)
    context = Context(text, names, negatives=other, id_vectors=around(text[labels]), id_labels=labels)
    to_class, to_other = generator.integers(0, classes, 300), generator.integers(0, 40, 300)
    return context, around(text[to_class]), around(other[to_other]), unit(generator.standard_normal((300, DIM)))


def fit(detector, context):
    """The detector, fitted; a skip where the package that it learns with is not installed."""
    try:
        return detector.fit(context)
    except MissingExtraError as error:
        pytest.skip(str(error))


def check_meaning(detector, seed=0):
    """Fails unless OOD rows score higher than ID rows, both kinds, in rank and in the mean."""
    context, id_rows, *kinds = planted(seed)
    fit(detector, context)
    id_scores = score(detector, id_rows)
    for ood_rows in kinds:
        ood_scores = score(detector, ood_rows)
        assert auroc(id_scores, ood_scores) > 0.95
        assert ood_scores.mean() > id_scores.mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_planted_ood_scores_higher_than_planted_id(name, seed):
    check_meaning(make_detector(name), seed)


@pytest.mark.parametrize("kind", [MaxLogit, KNN])
def test_a_detector_with_its_sign_turned_does_not_pass(kind):
    class Flipped(kind):
        def _score(self, vectors):
            return -super()._score(vectors)

    with pytest.raises(AssertionError):
        check_meaning(Flipped())


def test_a_detector_that_says_nothing_does_not_pass():
    class Constant(MaxLogit):
        def _score(self, vectors):
            return np.zeros(len(vectors), np.float32)

    with pytest.raises(AssertionError):
        check_meaning(Constant())


def test_auroc_counts_pairs_and_halves_ties():
    assert auroc([0, 1], [2, 3]) == 1
    assert auroc([2, 3], [0, 1]) == 0
    assert auroc([1, 1], [1, 1]) == 0.5
    assert auroc([0, 1], [1, 2]) == 3.5 / 4


@pytest.fixture(scope="module")
def encoded(dev, lite):
    """Vectors and files of a folder of dev images; each folder is encoded once."""
    vectors = {}

    def of(folder, most):
        if folder not in vectors:
            files = sorted(path for path in (dev / folder).rglob("*") if path.is_file())
            files = files[:: max(1, len(files) // most)]
            from outclass.encoders.stream import encode_stream
            from outclass.images.loader import Reader
            from outclass.images.sources import Files

            batches = list(encode_stream(Files(files), lite, Reader(lite.info.preprocess)))
            assert not any(error for batch in batches for error in batch.errors)
            vectors[folder] = np.concatenate([batch.vectors for batch in batches]), files
        return vectors[folder]

    return of


@pytest.fixture(scope="module")
def scores(encoded, lite):
    """Scores, labels and files of a folder of dev images for a class list."""
    guards = {}

    def of(classes, folder, most=100):
        if classes not in guards:
            guards[classes] = Guard(list(classes), lite)
        rows, files = encoded(folder, most)
        verdicts = guards[classes].check_vectors(rows)
        return np.array([one.ood_score for one in verdicts]), [one.label for one in verdicts], files

    return of


PETS = ("cat", "dog", "car")


# The bars are those that the bundled encoder has to reach; `python -m tools.lite.evaluate` prints the figures.
def test_pets_and_cars_score_below_birds_and_objects(scores):
    id_scores, _, _ = scores(PETS, "pets_vehicles/id", 200)
    ood_scores, _, _ = scores(PETS, "pets_vehicles/ood", 200)
    assert auroc(id_scores, ood_scores) >= 0.92
    assert ood_scores.mean() > id_scores.mean()


def test_pets_and_cars_are_told_apart(scores):
    _, labels, files = scores(PETS, "pets_vehicles/id", 200)
    right = [label == file.parent.name for label, file in zip(labels, files, strict=True)]
    assert np.mean(right) >= 0.95


@pytest.fixture(scope="module")
def imagenette(dev):
    return tuple(sorted(folder.name.replace("_", " ") for folder in (dev / "imagenette_id10").iterdir()))


def test_imagenette_is_told_apart(scores, imagenette):
    _, labels, files = scores(imagenette, "imagenette_id10", 250)
    right = [label == file.parent.name.replace("_", " ") for label, file in zip(labels, files, strict=True)]
    assert np.mean(right) >= 0.90


def test_far_images_score_above_imagenette(scores, imagenette):
    id_scores, _, _ = scores(imagenette, "imagenette_id10", 250)
    found = {}
    for far in ("textures", "scenes", "digits", "art"):
        ood_scores, _, _ = scores(imagenette, f"{far}_far", 256)
        found[far] = auroc(id_scores, ood_scores)
        assert ood_scores.mean() > id_scores.mean(), far
    assert np.mean(list(found.values())) >= 0.94, found


def test_the_default_detector_decides_without_calibration(lite, dev):
    guard = Guard(list(PETS), lite)
    assert guard.threshold.source == "natural"
    kept, caught = (
        np.mean([one.is_ood is wanted for one in guard.scan(dev / "pets_vehicles" / side)])
        for side, wanted in (("id", False), ("ood", True))
    )
    assert (kept + caught) / 2 >= 0.87


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEARNING])
def test_every_detector_ranks_textures_above_pets_and_cars(name, dev, lite):
    # Three classes and far images: an easy task that every published score must get right.
    guard = Guard(list(PETS), lite, name)
    sides = []
    for folder in ("pets_vehicles/id", "textures_far"):
        files = sorted(path for path in (dev / folder).rglob("*") if path.is_file())[::6]
        sides.append(np.array([one.ood_score for one in guard.scan(files)]))
    assert auroc(*sides) > 0.95
    assert sides[1].mean() > sides[0].mean()


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("labelled", [True, False])
def test_every_detector_that_learns_ranks_other_images_above_new_ones_of_its_classes(
    name, labelled, encoded, lite, imagenette
):
    # An image that it was fitted on would be told from others by any detector: it is judged on the other half.
    rows, files = encoded("imagenette_id10", 250)
    labels = np.array([imagenette.index(file.parent.name.replace("_", " ")) for file in files])
    class_set, detector = ClassSet.build(list(imagenette), lite), choose_detector(name, lite.info, None)
    words = mine(class_set, lite, **mining(detector, lite.info)) if "negatives" in detector.needs else None
    about = replace(judged_with(class_set, words, lite.info), id_vectors=rows[::2])
    fit(detector, replace(about, id_labels=labels[::2] if labelled else None))
    id_scores = detector.score(rows[1::2])
    found = {}
    for far in ("textures", "scenes", "digits", "art"):
        ood_scores = detector.score(encoded(f"{far}_far", 256)[0])
        found[far] = auroc(id_scores, ood_scores)
        assert ood_scores.mean() > id_scores.mean(), far
    assert min(found.values()) > 0.95, found
