"""Several detectors as one: each on the scale of known images that it has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st
from test_few_shot import planted, rows

from outclass import UsageError, all_detectors, load_encoder, make_detector
from outclass.defaults import choose_detector, mining
from outclass.detectors.base import read_name, split_names
from outclass.detectors.ensemble import Standard, combine
from outclass.detectors.folds import FOLDS, by_appearance, by_content, folds

SCORES = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30).filter(lambda s: np.ptp(s) > 0.1)


@given(SCORES, st.floats(0.01, 100), st.floats(-50, 50))
def test_the_unit_of_a_score_and_where_its_zero_lies_do_not_matter(scores, unit_, zero):
    scores = np.array(scores)
    other = np.arange(len(scores))[::-1].astype(float)
    plain = combine([(scores, scores), (other, other)])
    turned = combine([(scores * unit_ + zero, scores * unit_ + zero), (other, other)])
    np.testing.assert_allclose(plain, turned, atol=1e-3)


@given(SCORES)
def test_known_images_have_mean_0_and_deviation_1(scores):
    found = Standard.of(scores).apply(scores)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.std() == pytest.approx(1, abs=1e-6)
    assert list(np.argsort(found, kind="stable")) == list(np.argsort(scores, kind="stable"))


def test_combined_scores_are_the_sum_of_the_standardised_ones():
    found = combine([([1, 3], [2, 5, 1]), ([10, 10, 40, 40], [25, 25, 55])])  # means 2 and 25, deviations 1 and 15
    np.testing.assert_allclose(found, [0, 3, -1 + 2], atol=1e-6)


def test_two_kinds_of_score_tell_more_than_either():
    # One sees half of the OOD images, the other the other half.
    random = np.random.default_rng(0)
    known, blind, seen = random.standard_normal((2, 400)), random.standard_normal((2, 200)), 4
    one = np.concatenate([blind[0] + seen, blind[1]])
    other = np.concatenate([blind[1], blind[0] + seen])
    id_scores = combine([(known[0], known[0]), (known[1], known[1])])
    both = auroc(id_scores, combine([(known[0], one), (known[1], other)]))
    assert both > max(auroc(known[0], one), auroc(known[1], other)) + 0.1


@pytest.mark.parametrize("bad", [[], [1], [1, float("nan")], [1, float("inf")], [[1, 2]]])
def test_scores_that_give_no_scale_are_refused(bad):
    with pytest.raises(UsageError, match="two images"):
        Standard.of(bad)


@pytest.mark.parametrize("parts", [[], [([1, 2], [1]), ([1, 2], [1, 2])]])
def test_scores_of_different_images_are_not_added(parts):
    with pytest.raises(UsageError, match="same images"):
        combine(parts)


def test_an_ensemble_is_its_formula_with_each_member_cross_fitted():
    about, vectors = planted(each=8), rows()
    found = make_detector("ensemble", members=["max_logit", "mahalanobis"]).fit(about).score(vectors)
    n, order = 40, by_content(about.id_vectors)
    shown = np.empty(n, int)
    shown[order] = by_appearance(about.id_labels[order])
    fold = folds(shown, order)
    expected = np.zeros(len(vectors))
    for name in ("max_logit", "mahalanobis"):
        unseen = np.empty(n)
        for part in range(FOLDS):
            rest = fold != part
            some = replace(about, id_vectors=about.id_vectors[rest], id_labels=about.id_labels[rest])
            unseen[~rest] = make_detector(name).fit(some).score(about.id_vectors[~rest])
        scores = make_detector(name).fit(about).score(vectors)
        expected += (scores - unseen.mean()) / unseen.std()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(2, FOLDS), st.randoms())
def test_folds_hold_as_many_images_of_each_class_as_can_be(labels, count, random):
    labels = np.array(labels)
    order = np.array(random.sample(range(len(labels)), len(labels)))
    fold = folds(labels, order, count)
    for some in (np.ones(len(labels), bool), *(labels == one for one in np.unique(labels))):
        sizes = np.bincount(fold[some], minlength=count)
        assert sizes.max() - sizes.min() <= 1
        assert len(sizes) == count


def test_neither_the_order_of_images_nor_of_class_names_moves_the_scales():
    about = planted(each=8)
    members = ["max_logit", "mahalanobis", "knn:k=1"]
    once = make_detector("ensemble", members=members).fit(about).standards
    for seed in range(3):
        random = np.random.default_rng(seed)
        order, names = random.permutation(40), random.permutation(5)
        turned = replace(
            about,
            text=about.text[np.argsort(names)],
            id_vectors=about.id_vectors[order],
            id_labels=names[about.id_labels[order]],
        )
        for one, other in zip(once, make_detector("ensemble", members=members).fit(turned).standards, strict=True):
            assert (other.mean, other.deviation) == pytest.approx((one.mean, one.deviation), rel=1e-4)


def test_images_in_the_order_of_their_classes_are_measured_by_their_class():
    # Four images a class lie in four folds, so each is known by three others, however they are sorted.
    about = planted(each=4, classes=10)
    scale = make_detector("ensemble", members=["max_logit", "mahalanobis"]).fit(about).standards[1]
    strangers = make_detector("mahalanobis").fit(about).score(rows())
    assert scale.mean < strangers.min()


def test_an_image_that_is_the_only_one_of_its_class_sets_no_scale():
    about = planted(each=8, lean=0.8)
    alone = unit(np.random.default_rng(9).standard_normal((1, about.text.shape[1])))
    members = ["max_logit", "mahalanobis"]
    more = replace(
        about,
        text=np.concatenate([about.text, alone]),
        names=(*about.names, "alone"),
        id_vectors=np.concatenate([about.id_vectors, alone]),
        id_labels=np.append(about.id_labels, len(about.names)),
    )
    without = make_detector("ensemble", members=members).fit(about).standards[1]
    with_ = make_detector("ensemble", members=members).fit(more).standards[1]
    far = make_detector("mahalanobis").fit(about).score(alone)[0]
    assert far > without.mean + 40 * without.deviation  # it would be seen
    assert with_.mean == pytest.approx(without.mean, rel=0.1)
    assert with_.deviation < 2 * without.deviation
    one_each = planted(each=1)  # no other is there: then all count
    assert np.isfinite(make_detector("ensemble:members=max_logit+knn").fit(one_each).score(rows())).all()


def test_what_a_member_remembers_of_known_images_does_not_set_its_scale():
    # To the nearest of the images that it learned from every known image has distance 0.
    about = planted(each=10)
    detector = make_detector("ensemble", members=["max_logit", "knn:k=1"]).fit(about)
    scale = detector.standards[1]
    assert scale.mean > 0.5
    fresh = planted(each=10, seed=0)
    assert make_detector("knn", k=1).fit(about).score(fresh.id_vectors).max() < 0.01


@pytest.mark.parametrize("members", ["max_logit+knn:k=3", ["max_logit", {"name": "knn", "params": {"k": 3}}]])
def test_members_are_named_with_their_parameters(members):
    detector = make_detector("ensemble", members=members)
    assert detector.params == {"members": [{"name": "max_logit", "params": {}}, {"name": "knn", "params": {"k": 3}}]}
    assert make_detector("ensemble:members=max_logit+knn:k=3").params == detector.params


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("knn", "two or more"),
        ([], "two or more"),
        (3, "two or more"),
        (["knn", 3], "a member is a name"),
        (["knn", {"nam": "msp"}], "a member is a name"),
        ("knn+nothing", "unknown detector 'nothing'"),
        ("knn+knn:q=3", "no parameter q; it has k"),
        ("knn+gl_mcm", "'gl_mcm' cannot be a member"),
        ("knn+ensemble", "'ensemble' cannot be a member"),
    ],
)
def test_members_that_cannot_be_are_refused(members, said):
    with pytest.raises(UsageError, match=said):
        make_detector("ensemble", members=members)


def test_an_ensemble_needs_what_its_members_need():
    assert make_detector("ensemble:members=max_logit+msp").needs == {"id_vectors"}
    assert make_detector("ensemble:members=neglabel+msp").needs == {"id_vectors", "negatives"}
    for name, kind in all_detectors().items():
        if kind.info.takes_outliers:
            assert make_detector(f"ensemble:members=max_logit+{name}").takes_outliers
    assert not make_detector("ensemble").takes_outliers


def test_three_images_give_no_scale():
    about = planted()
    few = replace(about, id_vectors=about.id_vectors[:3], id_labels=about.id_labels[:3])
    with pytest.raises(UsageError, match="4 and more"):
        make_detector("ensemble").fit(few)


@pytest.mark.parametrize("n", [10, 12])
def test_too_few_images_for_a_member_are_said_with_its_name_and_how_many_there_were(n):
    about = planted(each=5)
    few = replace(about, id_vectors=about.id_vectors[:n], id_labels=about.id_labels[:n])
    make_detector("outliers").fit(few)  # alone it can
    said = rf"given {n} images, too few for its member 'outliers'.*a quarter more.*at least 10 of them, got"
    with pytest.raises(UsageError, match=said):
        make_detector("ensemble:members=max_logit+outliers").fit(few)
    enough = replace(about, id_vectors=about.id_vectors[:13], id_labels=about.id_labels[:13])
    make_detector("ensemble:members=max_logit+outliers").fit(enough)


def test_two_images_of_each_of_two_classes_are_enough():
    about = planted(classes=2, each=2)
    assert np.isfinite(make_detector("ensemble").fit(about).score(rows())).all()


def test_labels_that_are_no_classes_are_refused():
    about = planted()
    for labels in (about.id_labels[1:], about.id_labels - 1, np.array(["a"] * 30)):
        with pytest.raises(UsageError, match="id_labels must be 30 whole numbers from 0 to 4"):
            make_detector("ensemble").fit(replace(about, id_labels=labels))


def test_a_member_that_calls_all_known_images_alike_does_not_break_the_sum():
    # With classes this far from every word each known image is certain: all score -1.
    about = planted(lean=0.95)
    detector = make_detector("ensemble:members=neglabel:temperature=0.001+max_logit").fit(about)
    scores = detector.score(np.concatenate([about.id_vectors, unit(about.negatives)]))
    assert np.isfinite(scores).all()
    assert auroc(scores[:30], scores[30:]) > 0.99


def test_members_suit_the_encoder_as_they_do_alone():
    info = load_encoder("lite").info
    alone = choose_detector("neglabel", info, None)
    detector = choose_detector("ensemble:members=neglabel+csp:groups=7", info, None)
    assert detector.members[0].params == alone.params
    assert detector.members[1].params == {**alone.params, "groups": 7}
    assert not mining(detector, info)["conjugated"]
    assert mining(choose_detector("ensemble:members=csp+knn", info, None), info)["conjugated"]
    assert mining(choose_detector("tip_neglabel:base=csp", info, None), info)["conjugated"]


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("knn", "knn", {}),
        ("knn:k=5", "knn", {"k": 5}),
        ("tip:base=energy, strength=2.5", "tip", {"base": "energy", "strength": 2.5}),
        ("eoe:balanced=true,groups=3", "eoe", {"balanced": True, "groups": 3}),
        ('ensemble:members=["knn","msp"]', "ensemble", {"members": ["knn", "msp"]}),
    ],
)
def test_a_detector_is_named_with_parameters(text, name, params):
    assert read_name(text) == (name, params)
    made = make_detector(text)
    assert made.info.name == name
    assert name == "ensemble" or params.items() <= made.params.items()


@pytest.mark.parametrize("text", ["knn:", "knn:5", "knn:k=", "knn:=5", "knn:k"])
def test_what_is_no_parameter_is_refused(text):
    with pytest.raises(UsageError, match="name=value"):
        make_detector(text)


def test_an_unknown_parameter_is_answered_with_those_there_are():
    with pytest.raises(
        UsageError, match=r"'tip' has no parameter alpha; it has base, strength, sharpness, temperature"
    ):
        make_detector("tip:alpha=2")
    with pytest.raises(UsageError, match="'max_logit' has no parameter k; it has none"):
        make_detector("max_logit:k=2")


def test_a_list_of_detectors_is_cut_between_them():
    text = "neglabel, tip:base=energy,strength=2,knn:k=5,max_logit"
    assert split_names(text) == ["neglabel", "tip:base=energy,strength=2", "knn:k=5", "max_logit"]
