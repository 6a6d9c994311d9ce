"""What every detector promises that learns from images of the known classes alone; one by one they are in
``test_distance.py``, ``test_density.py`` and ``test_subspace.py``."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, Guard, MissingExtraError, UsageError, make_detector
from outclass.encoders.stream import encode_stream
from outclass.images.loader import Reader
from outclass.images.sources import Files

OF_MOMENTS = ("mahalanobis", "relative_mahalanobis", "residual", "vim")
NAMES = (*OF_MOMENTS, "knn", "lof", "kde", "nnguide", "one_class_svm")
FROM_TEXTS = ("vim", "nnguide")  # learn the energies of the known images, too
seeds = st.integers(0, 2**32 - 1)


def known(n=90, dim=8, classes=3, seed=0, spread=0.2):
    """A context with n images near the texts of their classes."""
    generator = np.random.default_rng(seed)
    text = unit(generator.standard_normal((classes, dim)))
    labels = np.arange(n) % classes
    vectors = unit(text[labels] + spread * generator.standard_normal((n, dim)))
    return Context(text, tuple("abcdefgh"[:classes]), id_vectors=vectors, id_labels=labels)


def sphere(n, dim=8, seed=1):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def fitted(name, context, **params):
    try:
        return make_detector(name, **params).fit(context)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_without_images_it_is_said_how_to_give_some(name):
    with pytest.raises(UsageError, match=r"guard\.fit\(folder\).*outclass fit FOLDER.*max_logit"):
        make_detector(name).fit(replace(known(), id_vectors=None))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(name, n):
    few = known(n)
    with pytest.raises(UsageError, match=f"was given {n}"):
        make_detector(name).fit(few)
    with pytest.raises(UsageError, match=f"was given {n}"):
        make_detector(name).fit_blocks(few, [(few.id_vectors, few.id_labels)])


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_encoder_and_broken_ones_are_refused(name):
    with pytest.raises(UsageError, match=r"id_vectors must be a \(n, 8\)"):
        make_detector(name).fit(replace(known(), id_vectors=sphere(90, 9)))
    broken = sphere(90)
    broken[7, 2] = np.nan
    with pytest.raises(UsageError, match="row 7"):
        make_detector(name).fit(replace(known(), id_vectors=broken))


@pytest.mark.parametrize("name", NAMES)
def test_float16_and_rows_of_another_length_are_refused(name):
    about = known()
    half, long = about.id_vectors.astype(np.float16), about.id_vectors.copy()
    long[3] *= 1.01
    for vectors, said in ((half, "float16"), (long, r"row 3 has length 1\.01")):
        with pytest.raises(UsageError, match=said):
            make_detector(name).fit(replace(about, id_vectors=vectors))
        with pytest.raises(UsageError, match=said):
            make_detector(name).fit_blocks(about, [(vectors, about.id_labels)])
        with pytest.raises(UsageError, match=said):
            fitted(name, about).score(vectors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "labels", [np.zeros(19, int), np.zeros((20, 1), int), np.zeros(20), np.full(20, -1), np.arange(20) % 4, ["a"] * 20]
)
def test_labels_that_are_no_classes_are_refused(name, labels):
    about = known(20)
    with pytest.raises(UsageError, match="id_labels must be 20 whole numbers from 0 to 2"):
        make_detector(name).fit(replace(about, id_labels=labels))
    with pytest.raises(UsageError, match="id_labels must be 20 whole numbers from 0 to 2"):
        make_detector(name).fit_blocks(about, [(about.id_vectors, labels)])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_known_images_does_not_matter(name):
    about, images = known(), sphere(40)
    order = np.random.default_rng(0).permutation(90)
    moved = replace(about, id_vectors=about.id_vectors[order], id_labels=about.id_labels[order])
    scores = fitted(name, about).score(images)
    close = 1e-2 if name == "one_class_svm" else 1e-5 * np.ptp(scores)  # it is found in steps, up to a tolerance
    np.testing.assert_allclose(fitted(name, moved).score(images), scores, rtol=0, atol=close)


# LOF compares with how dense it is around the nearest, and these are others farther out.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("relative_mahalanobis", "lof")])
def test_an_image_farther_from_all_known_ones_scores_higher(name):
    axes = np.eye(16, dtype=np.float32)
    centre, away = axes[:1], axes[1:2]
    noise = 0.1 * np.random.default_rng(1).standard_normal((200, 16))
    noise[:, 1] = 0
    about = Context(centre, ("a",), id_vectors=unit(centre + noise))
    farthest = 1.5 if name in ("residual", "vim") else 2  # a subspace goes on on the other side of 0
    angles = np.linspace(0.5, farthest, 8)[:, None]  # farther away the One-Class SVM's kernel is 0 in float32
    scores = fitted(name, about).score(unit(np.cos(angles) * centre + np.sin(angles) * away))
    assert (np.diff(scores) > 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FROM_TEXTS])
def test_what_is_learned_does_not_hang_on_the_class_texts(name):
    about, images = known(), sphere(20)
    other = replace(about, text=sphere(3, seed=7))
    np.testing.assert_array_equal(fitted(name, about).score(images), fitted(name, other).score(images))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fitted_scores_without_scikit_learn(name, monkeypatch):
    about = known()
    detector = fitted(name, about)
    before = detector.score(about.id_vectors)
    for module in ("sklearn", "sklearn.svm", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)
    again = type(detector).from_state(detector.params, detector.state())
    np.testing.assert_array_equal(again.score(about.id_vectors), before)


@pytest.mark.parametrize("name", NAMES)
def test_without_scikit_learn_the_pip_command_is_named_where_it_is_needed(name, monkeypatch):
    for module in ("sklearn", "sklearn.svm", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)
    if name == "one_class_svm":
        with pytest.raises(MissingExtraError, match=r'pip install "outclass\[fit\]"'):
            make_detector(name).fit(known())
    else:
        make_detector(name).fit(known())


@pytest.mark.parametrize("name", NAMES)
def test_fitting_twice_gives_the_same_bytes(name):
    first, second = (fitted(name, known(300, 32)).state() for _ in range(2))
    assert {key: array.tobytes() for key, array in first.items()} == {
        key: array.tobytes() for key, array in second.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_images_that_were_given_may_change_afterwards(name):
    about, images = known(), sphere(20)
    detector = fitted(name, about)
    before = detector.score(images)
    about.id_vectors[:] = images[0]
    np.testing.assert_array_equal(detector.score(images), before)


# Blocks


class Streamed:
    """Blocks that are made when they are asked for, and forgotten."""

    def __init__(self, context, cuts):
        self.context, self.cuts, self.passes = context, sorted(cuts), 0

    def __iter__(self):
        self.passes += 1
        for start, end in zip([0, *self.cuts], [*self.cuts, len(self.context.id_vectors)], strict=True):
            labels = self.context.id_labels
            yield self.context.id_vectors[start:end].copy(), None if labels is None else labels[start:end].copy()


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=5), labelled=st.booleans(), at_once=st.integers(1, 90))
def test_blocks_teach_what_one_array_does(name, seed, cuts, labelled, at_once):
    about = known(60, seed=seed)
    if not labelled:
        about = replace(about, id_labels=None)
    images = sphere(20, seed=seed)
    expected = fitted(name, about).score(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outclass.detectors.distance.LEARNED_AT_ONCE", at_once)
        empty = replace(about, id_vectors=None, id_labels=None)
        streamed = make_detector(name).fit_blocks(empty, Streamed(about, cuts)).score(images)
    np.testing.assert_allclose(streamed, expected, rtol=1e-5, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("name", OF_MOMENTS)
def test_moments_hold_one_block_at_a_time(name):
    import tracemalloc

    about = known(50)

    class Many:
        def __iter__(self):
            generator = np.random.default_rng(0)
            for _ in range(60):
                labels = generator.integers(0, 3, 5000)
                noise = generator.standard_normal((5000, 8))
                yield unit(about.text[labels] + 0.2 * noise), labels

    tracemalloc.start()
    try:
        detector = make_detector(name).fit_blocks(about, Many())  # 300,000 images: 10 MB
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    new, _ = next(iter(Many()))
    assert auroc(detector.score(new[:500]), detector.score(sphere(500))) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_end_after_one_time_are_refused(name):
    about = known()
    with pytest.raises(UsageError, match="an iterator, which ends after one time"):
        make_detector(name).fit_blocks(about, iter([(about.id_vectors, about.id_labels)]))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_have_labels_all_of_them_or_none(name):
    about = known()
    with pytest.raises(UsageError, match="some blocks of images have labels and others have none"):
        make_detector(name).fit_blocks(about, [(about.id_vectors, about.id_labels), (about.id_vectors, None)])


# Real images


@pytest.fixture(scope="module")
def photographs(dev, lite):
    """Texts and images of ten classes with their labels, and images of four kinds that are of none."""
    names = sorted(folder.name for folder in (dev / "imagenette_id10").iterdir() if folder.is_dir())
    guard = Guard([name.replace("_", " ") for name in names], lite)

    def vectors(files):
        batches = encode_stream(Files(files), lite, Reader(lite.info.preprocess))
        return np.concatenate([batch.vectors for batch in batches])

    def files(folder):
        return sorted(file for file in (dev / folder).rglob("*") if file.is_file())

    of_classes = files("imagenette_id10")
    labels = np.array([names.index(file.parent.name) for file in of_classes])
    far = {name: vectors(files(f"{name}_far")[::2]) for name in ("textures", "scenes", "digits", "art")}
    return guard.class_set, vectors(of_classes), labels, far


@pytest.mark.parametrize("name", ["mahalanobis", "knn"])
def test_twelve_images_a_class_tell_far_images_apart(name, photographs):
    class_set, rows, labels, far = photographs
    about = Context(class_set.vectors, class_set.names, id_vectors=rows[::2], id_labels=labels[::2])
    assert np.bincount(labels[::2]).min() >= 12
    detector = fitted(name, about)
    id_scores = detector.score(rows[1::2])
    found = {kind: auroc(id_scores, detector.score(images)) for kind, images in far.items()}
    assert np.mean(list(found.values())) >= 0.96, found
