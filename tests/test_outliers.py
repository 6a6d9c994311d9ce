"""Boundaries against outliers: made up in the vector space, given as images, or both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, Guard, UsageError, make_detector
from outclass.detectors.outliers import _boundary, _logistic, npos, vos
from outclass.encoders.stream import encode_stream
from outclass.images.loader import Reader
from outclass.images.sources import Files
from outclass.words.classes import ClassSet

DIM = 64


def cone(generator, centres, count, wide=1.0):
    """(count, d) unit rows around the centres in turn."""
    noise = unit(generator.standard_normal((count, centres.shape[1])))
    return unit(centres[np.arange(count) % len(centres)] + wide * noise)


@pytest.fixture(scope="module")
def planted():
    """Context of 3 classes; new ID rows; three sorts of OOD rows: one near the classes, two elsewhere."""
    generator = np.random.default_rng(1)
    text = unit(generator.standard_normal((3, DIM)))
    near = unit(text[:1] + 0.5 * unit(generator.standard_normal((1, DIM))))
    labels = np.arange(120) % 3
    context = Context(text, ("a", "b", "c"), id_vectors=cone(generator, text, 120), id_labels=labels)
    others = {
        "near": cone(generator, near, 200),
        "far": cone(generator, unit(generator.standard_normal((4, DIM))), 200),
        "nothing": unit(generator.standard_normal((200, DIM))),
    }
    return context, cone(generator, text, 300), others


@pytest.mark.parametrize("synthesis", ["npos", "vos"])
@pytest.mark.parametrize("labelled", [True, False])
def test_made_up_outliers_teach_what_is_far(planted, synthesis, labelled):
    context, new, others = planted
    context = context if labelled else replace(context, id_labels=None)
    detector = make_detector("outliers", synthesis=synthesis).fit(context)
    for kind in ("far", "nothing"):
        assert auroc(detector.score(new), detector.score(others[kind])) > 0.97, kind


def test_given_outliers_teach_what_lies_near_them_and_the_rest_stays_far(planted):
    context, new, others = planted
    plain = make_detector("outliers").fit(context)
    taught = make_detector("outliers").fit(replace(context, outlier_vectors=others["near"][:100]))
    gained = {}
    for kind, rows in others.items():
        rows = rows[100:] if kind == "near" else rows  # those that it was not fitted on
        gained[kind] = auroc(taught.score(new), taught.score(rows)) - auroc(plain.score(new), plain.score(rows))
    assert gained["near"] > 0.05
    assert min(gained["far"], gained["nothing"]) > -0.02


def test_an_image_among_the_given_outliers_scores_higher_than_far_from_them(planted):
    context, _, others = planted
    detector = make_detector("outliers", synthesis="none").fit(replace(context, outlier_vectors=others["near"]))
    assert detector.weights[2] > 0
    # Two images that are as far from the classes; one of them has outliers around it.
    plain = make_detector("mahalanobis").fit(context)
    where = unit(others["near"][:50] + 0.05 * np.random.default_rng(0).standard_normal((50, DIM)))
    texts, distances = where @ context.text.T, plain.score(where)
    elsewhere = cone(np.random.default_rng(2), context.text, 3000, wide=1.5)
    alike = [
        (row, pair)
        for row, (cosine, distance) in enumerate(zip(texts.max(axis=1), distances, strict=True))
        for pair in np.flatnonzero(
            (abs((elsewhere @ context.text.T).max(axis=1) - cosine) < 0.02)
            & (abs(plain.score(elsewhere) - distance) < 0.03 * distance)
        )[:1]
    ]
    assert len(alike) >= 5
    rows, pairs = map(list, zip(*alike, strict=True))
    assert (detector.score(where[rows]) > detector.score(elsewhere[pairs])).mean() > 0.9


def test_no_class_but_one_is_enough(planted):
    context, _, others = planted
    own = context.id_labels == 0
    one = Context(context.text[:1], ("a",), id_vectors=context.id_vectors[own])
    detector = make_detector("outliers").fit(one)
    new = cone(np.random.default_rng(3), context.text[:1], 100)
    assert auroc(detector.score(new), detector.score(others["nothing"])) > 0.95


def test_a_second_fit_and_another_seed(planted):
    context, new, _ = planted
    context = replace(context, outlier_vectors=unit(np.random.default_rng(5).standard_normal((30, DIM))))
    first, second = (make_detector("outliers").fit(context) for _ in range(2))
    for name, array in first.state().items():
        assert array.tobytes() == second.state()[name].tobytes(), name
    other = make_detector("outliers", seed=1).fit(context)
    assert first.weights.tobytes() != other.weights.tobytes()
    np.testing.assert_allclose(first.score(new), other.score(new), atol=1.5)  # other draws, much the same boundary
    again = type(first).from_state(first.params, first.state())
    assert again.score(new).tobytes() == first.score(new).tobytes()


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 6), dim=st.integers(2, 30), labelled=st.booleans())
def test_no_weight_is_negative_and_farther_is_never_less_ood(seed, classes, dim, labelled):
    generator = np.random.default_rng(seed)
    text = unit(generator.standard_normal((classes, dim)) + 1)
    labels = np.arange(30) % classes
    images = unit(text[labels] + 0.3 * generator.standard_normal((30, dim)))
    others = unit(generator.standard_normal((12, dim)))
    about = Context(text, ("",) * classes, id_vectors=images, id_labels=labels if labelled else None)
    detector = make_detector("outliers").fit(replace(about, outlier_vectors=others))
    assert (detector.weights[:-1] >= 0).all()
    assert detector.weights[:-1].any()
    low, high = detector.score_range()
    scores = detector.score(unit(generator.standard_normal((100, dim))))
    assert low - 1e-6 <= scores.min() <= scores.max() <= high + 1e-6


def test_a_distance_by_which_outliers_look_more_known_than_known_images_counts_nothing(planted):
    context, _, _ = planted
    twins = cone(np.random.default_rng(4), context.text, 200, wide=0.3)  # nearer to the classes than their images
    detector = make_detector("outliers", synthesis="none").fit(replace(context, outlier_vectors=twins))
    assert detector.weights[0] == detector.weights[1] == 0
    assert detector.weights[2] > 0


def test_where_outliers_teach_nothing_all_distances_count_the_same_and_that_is_said(caplog):
    rows = np.random.default_rng(0).standard_normal((100, 2)) * [1, 5]
    rows[:50] += [2, 10]  # the known ones lie farther out by both
    weights = _boundary(rows, np.repeat([0, 1], 50))
    np.testing.assert_allclose(weights[:-1] * rows[:50].std(axis=0), 1)
    assert "all count the same" in caplog.text


# The boundary itself


def sample(seed, n=60, p=3):
    generator = np.random.default_rng(seed)
    kinds = np.repeat([0, 1, 2], n // 3)
    return generator.standard_normal((n, p)) + (kinds > 0)[:, None] * generator.uniform(-1, 2, p), kinds


@given(seed=st.integers(0, 2**32 - 1))
def test_the_weights_are_the_best_of_those_that_are_not_negative(seed):
    rows, kinds = sample(seed)
    found = _boundary(rows, kinds)
    middle, spread = rows[kinds == 0].mean(axis=0), rows[kinds == 0].std(axis=0)
    share = np.where(kinds == 0, 1 / 2, 1 / 4) / (len(kinds) / 3)
    side = np.where(kinds == 0, -1, 1)

    def loss(weights):  # in units of the known images' spread
        own = weights[:-1] * spread
        return share @ np.logaddexp(0, -side * (rows @ weights[:-1] + weights[-1])) + 0.005 * own @ own

    if (found[:-1] * spread == 1).all():  # nothing to be learned, all count the same
        return
    best = loss(found)
    generator = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 0.1, 1):
        for step in generator.standard_normal((100, len(found))) * scale:
            near = np.append(np.maximum(found[:-1] + step[:-1] / spread, 0), found[-1] + step[-1] - step[:-1] @ middle)
            assert loss(near) >= best - 1e-9


def test_the_logistic_regression_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    rows, kinds = sample(3)
    share = np.where(kinds == 0, 1 / 2, 1 / 4) / 20
    found, _ = _logistic(rows, np.where(kinds == 0, -1.0, 1.0), share)
    model = linear.LogisticRegression(C=100, tol=1e-10, max_iter=1000).fit(rows, kinds > 0, sample_weight=share)
    np.testing.assert_allclose(found, [*model.coef_[0], *model.intercept_], atol=1e-4)


def test_distances_that_tell_all_apart_have_finite_weights():
    rows = np.concatenate([np.zeros((20, 1)), np.full((20, 1), 1e6)]) + np.arange(40)[:, None] % 7
    weights = _boundary(rows, np.repeat([0, 1], 20))
    assert np.isfinite(weights).all()
    assert ((rows @ weights[:-1] + weights[-1] > 0) == np.repeat([False, True], 20)).all()


# Making outliers up


def test_npos_outliers_lie_around_the_outermost_images_and_farther_out():
    generator = np.random.default_rng(0)
    known = cone(generator, unit(generator.standard_normal((2, DIM))), 100)
    drawn = npos(known, 3, 2.0, generator)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    assert len(known) <= len(drawn) < 1.1 * len(known)

    def apart(rows, skip=0):
        return np.sort(np.linalg.norm(rows[:, None] - known[None], axis=2), axis=1)[:, 2 + skip]

    own = apart(known, skip=1)
    assert apart(drawn).min() > own.max()
    source = np.linalg.norm(drawn[:, None] - known[None], axis=2).argmin(axis=1)
    assert own[source].mean() > np.quantile(own, 0.7)
    longer = npos(known, 3, 4.0, np.random.default_rng(0))
    assert apart(longer).mean() > apart(drawn).mean()


def test_vos_outliers_are_the_least_likely_of_many_draws():
    generator = np.random.default_rng(0)
    spread = generator.standard_normal((8, 8))
    whiten = np.linalg.inv(np.linalg.cholesky(spread @ spread.T + np.eye(8))).T
    means = 30 * unit(generator.standard_normal((2, 8)))  # far out, so that unit rows change the directions little
    drawn = vos(whiten, means @ whiten, 100, generator)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    # Literally: draw 10,000 of a class, keep the 50 of the lowest density.
    literal = generator.standard_normal((10_000, 8))
    literal = literal[np.argsort((literal**2).sum(axis=1))[-50:]] @ np.linalg.inv(whiten) + means[0]
    expected, got = unit(literal) - unit(means[:1]), drawn[:50] - unit(means[:1])
    np.testing.assert_allclose(np.linalg.norm(got, axis=1).mean(), np.linalg.norm(expected, axis=1).mean(), rtol=0.15)
    np.testing.assert_allclose(np.cov(got.T), np.cov(expected.T), atol=0.6 * np.cov(expected.T).max())
    typical = generator.standard_normal((500, 8)) @ np.linalg.inv(whiten) + means[0]
    assert np.linalg.norm(got, axis=1).mean() > 1.4 * np.linalg.norm(unit(typical) - unit(means[:1]), axis=1).mean()


# What is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id_vectors": 9}, "at least 10"),
        ({"outlier_vectors": 9}, "at least 10 outliers, got 9"),
        ({"outlier_vectors": 0}, "at least 10 outliers, got 0"),
    ],
)
def test_too_few_images_are_refused(planted, change, said):
    context, _, others = planted
    context = replace(context, outlier_vectors=others["far"])
    fewer = {name: getattr(context, name)[:n] for name, n in change.items()}
    if "id_vectors" in fewer:
        fewer["id_labels"] = context.id_labels[:9]
    with pytest.raises(UsageError, match=said):
        make_detector("outliers").fit(replace(context, **fewer))


def test_without_synthesis_outliers_have_to_be_given(planted):
    with pytest.raises(UsageError, match="--outliers FOLDER"):
        make_detector("outliers", synthesis="none").fit(planted[0])


@pytest.mark.parametrize(
    "params", [{"synthesis": "gan"}, {"noise": 0}, {"noise": 11}, {"noise": True}, {"seed": -1}, {"seed": 0.5}]
)
def test_parameters_that_mean_nothing_are_refused(params):
    with pytest.raises(UsageError, match=next(iter(params))):
        make_detector("outliers", **params)


# On photographs


def test_outlier_photographs_help_where_they_are_like_those_to_come(dev, lite):
    def encode(folder, step=1):
        files = sorted(path for path in (dev / folder).rglob("*") if path.is_file())[::step]
        batches = encode_stream(Files(files), lite, Reader(lite.info.preprocess))
        return np.concatenate([batch.vectors for batch in batches]), [file.parent.name for file in files]

    rows, folders = encode("imagenette_id10")
    names = sorted(set(folders))
    labels = np.array([names.index(folder) for folder in folders])
    text = ClassSet.build([name.replace("_", " ") for name in names], lite).vectors
    near, textures = encode("imagenet1k_near200")[0], encode("textures_far", 4)[0]
    context = Context(text, tuple(names), id_vectors=rows[::2], id_labels=labels[::2])
    shown = {}
    for what, outliers in (("none", None), ("near", near[::2]), ("textures", textures[::2])):
        detector = make_detector("outliers").fit(replace(context, outlier_vectors=outliers))
        known = detector.score(rows[1::2])
        shown[what] = [auroc(known, detector.score(others[1::2])) for others in (near, textures)]
    assert min(shown["none"]) > 0.985
    assert shown["near"][0] >= shown["none"][0]
    assert shown["textures"][1] >= shown["none"][1] - 0.001
    assert shown["textures"][0] > shown["none"][0] - 0.005  # a narrow sort of outliers does not open the boundary


def test_a_guard_learns_from_outlier_pictures_and_comes_back_the_same(tmp_path):
    from test_learning import COLD, WARM, halves, images

    known, new = halves(*WARM)
    guard = Guard(WARM, "toy", "outliers")
    guard.fit(known, outliers=images(*COLD)[::2])
    scores = [verdict.ood_score for verdict in guard.scan(new)]
    unknown = [verdict.ood_score for verdict in guard.scan(images(*COLD)[1::2])]
    assert auroc(scores, unknown) > 0.9
    guard.save(tmp_path / "one.guard")
    again = Guard.load(tmp_path / "one.guard", "toy")
    assert [verdict.ood_score for verdict in again.scan(new)] == scores
