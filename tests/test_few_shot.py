"""A few images of each class beside its text: what they change is what the formulas say, and it helps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, UsageError, make_detector
from outclass.decide import metrics
from outclass.decide.bootstrap import paired_bootstrap
from outclass.defaults import choose_detector, mining
from outclass.judge import context as judged_with
from outclass.words.classes import ClassSet
from outclass.words.negatives import mine

DIM = 32
SEEDS, SHOTS = 5, 4


def planted(seed=0, classes=5, each=6, lean=0.5):
    """Texts, negatives and labelled images that lean towards a direction of their class which its text shares."""
    random = np.random.default_rng(seed)
    text = unit(random.standard_normal((classes, DIM)))
    labels = np.repeat(np.arange(classes), each)
    own = unit(text + 0.8 * unit(random.standard_normal((classes, DIM))))
    images = unit(lean * own[labels] + (1 - lean) * unit(random.standard_normal((len(labels), DIM))))
    negatives = unit(random.standard_normal((40, DIM)))
    names = tuple(f"class {row}" for row in range(classes))
    return Context(text, names, 30.0, negatives=negatives, id_vectors=images, id_labels=labels)


def rows(n=20, seed=9):
    return unit(np.random.default_rng(seed).standard_normal((n, DIM)))


def cache_by_hand(about, vectors, strength, sharpness):
    """What the cache adds to each cosine, image by image as the formula is written."""
    bank, labels = about.id_vectors.astype(float), about.id_labels
    n, classes = len(bank), len(about.text)
    pairs = {True: [], False: []}
    for i in range(n):
        for j in range(n):
            if i != j:
                pairs[labels[i] == labels[j]].append(bank[i] @ bank[j])
    w, b = np.mean(pairs[True]), np.mean(pairs[False])
    beta = sharpness / (w - b)

    def given(vector, k):
        return np.mean([np.exp(beta * (vector @ one - w)) for one in bank[labels == k]])

    c = np.mean([max(given(bank[i], k) for k in range(classes) if k != labels[i]) for i in range(n)])
    return strength / about.logit_scale * np.array([[given(v, k) - c for k in range(classes)] for v in vectors])


@pytest.mark.parametrize("base", ["msp", "max_logit", "energy"])
def test_tip_is_its_formula(base):
    about, vectors = planted(), rows()
    found = make_detector("tip", base=base, strength=5.0, sharpness=2.0).fit(about).score(vectors)
    logits = about.logit_scale * (vectors @ about.text.T + cache_by_hand(about, vectors, 5.0, 2.0))
    total = np.log(np.exp(logits).sum(axis=1))
    expected = {
        "msp": -np.exp(logits.max(axis=1) - total),
        "max_logit": -logits.max(axis=1) / about.logit_scale,
        "energy": -total / about.logit_scale,
    }[base]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_tip_against_negatives_is_its_formula():
    about, vectors = planted(), rows()
    found = make_detector("tip_neglabel", temperature=0.05).fit(about).score(vectors)
    cosines = vectors @ about.text.T + cache_by_hand(about, vectors, 3.0, 1.5)
    mine_, theirs = np.exp(cosines / 0.05).mean(axis=1), np.exp(vectors @ about.negatives.T / 0.05).mean(axis=1)
    np.testing.assert_allclose(found, -mine_ / (mine_ + theirs), atol=1e-5)


@given(seed=st.integers(0, 10**6), base=st.sampled_from(["msp", "max_logit", "energy"]))
def test_without_strength_the_cache_changes_nothing(seed, base):
    about, vectors = planted(seed), rows(seed=seed + 1)
    plain = make_detector(base, **({} if base == "max_logit" else {"temperature": 1 / about.logit_scale}))
    tip = make_detector("tip", base=base, strength=0)
    np.testing.assert_allclose(tip.fit(about).score(vectors), plain.fit(about).score(vectors), atol=1e-6)


@pytest.mark.parametrize("base", ["neglabel", "csp", "eoe"])
def test_without_strength_the_cache_leaves_negative_labels_as_they_are(base):
    about, vectors = planted(), rows()
    plain = make_detector(base, groups=4, balanced=False).fit(about)
    tip = make_detector("tip_neglabel", base=base, strength=0, groups=4, balanced=False).fit(about)
    np.testing.assert_allclose(tip.score(vectors), plain.score(vectors), atol=1e-6)
    assert tip.natural_threshold() == plain.natural_threshold()
    assert tip.score_range() == plain.score_range()


@pytest.mark.parametrize("name", ["prototypes", "tip", "tip_neglabel"])
def test_the_more_an_image_is_like_those_of_a_class_the_lower_it_scores(name):
    about = planted()
    detector = make_detector(name).fit(about)
    mean = unit(about.id_vectors[about.id_labels == 2].mean(axis=0)[None])
    most = (rows(500) @ np.concatenate([about.id_vectors, about.text]).T).max(axis=1)
    stranger = rows(500)[[most.argmin()]]  # away from all classes, so that it leaves none on its way
    path = np.concatenate([unit((1 - t) * stranger + t * mean) for t in np.linspace(0.2, 1, 6)])
    scores = detector.score(path)
    assert (np.diff(scores) <= 0).all()  # as good as certain is no surer
    assert scores[-1] < scores[0]


@pytest.mark.parametrize("name", ["prototypes", "tip", "tip_neglabel", "probe"])
def test_images_teach_what_a_misleading_text_hides(name):
    # The photographs of class 0 are not where its text is: words alone take them for something else.
    about = planted(lean=0.7)
    random = np.random.default_rng(3)
    elsewhere = unit(random.standard_normal(DIM)[None])
    images = about.id_vectors.copy()
    images[about.id_labels == 0] = unit(elsewhere + 0.5 * unit(random.standard_normal((6, DIM))))
    about = replace(about, id_vectors=images)
    fresh = unit(elsewhere + 0.5 * unit(random.standard_normal((40, DIM))))
    others = rows(40)
    words = make_detector("max_logit").fit(about)
    learned = make_detector(name, **({"strength": 30} if name.startswith("tip") else {})).fit(about)
    assert auroc(words.score(fresh), words.score(others)) < 0.7
    assert auroc(learned.score(fresh), learned.score(others)) > 0.9


@pytest.mark.parametrize("name", ["prototypes", "tip", "tip_neglabel", "probe"])
def test_images_without_labels_count_as_of_their_nearest_text(name):
    about = planted()
    nearest = (about.id_vectors @ about.text.T).argmax(axis=1)
    one = make_detector(name).fit(replace(about, id_labels=None)).score(rows())
    other = make_detector(name).fit(replace(about, id_labels=nearest)).score(rows())
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["prototypes", "tip", "tip_neglabel", "probe", "ensemble"])
def test_the_order_of_the_images_says_nothing(name):
    about, order = planted(), np.random.default_rng(0).permutation(30)
    turned = replace(about, id_vectors=about.id_vectors[order], id_labels=about.id_labels[order])
    one, other = (make_detector(name).fit(given).score(rows()) for given in (about, turned))
    np.testing.assert_allclose(one, other, atol={"probe": 2e-3, "ensemble": 1e-3}.get(name, 1e-5))


def test_a_class_gets_no_more_for_having_more_images():
    # Class 0 a hundred times as often, the same images: the sum over them would favour it, the mean does not.
    about = planted()
    again = np.concatenate([np.arange(30), np.repeat(np.flatnonzero(about.id_labels == 0), 99)])
    many = replace(about, id_vectors=about.id_vectors[again], id_labels=about.id_labels[again])
    one = make_detector("tip", base="msp").fit(about)
    other = make_detector("tip", base="msp").fit(many)
    other.cache = one.cache  # w, b and c are of other pairs
    np.testing.assert_allclose(one.score(rows()), other.score(rows()), atol=1e-5)


def test_a_prototype_lies_between_text_and_mean():
    about = planted()
    means = unit([about.id_vectors[about.id_labels == k].mean(axis=0) for k in range(5)])
    for a in (0, 0.3, 1):
        found = make_detector("prototypes", text_weight=a).fit(about).score(rows())
        expected = -(a * rows() @ about.text.T + (1 - a) * rows() @ means.T).max(axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["prototypes", "tip", "tip_neglabel"])
def test_a_class_without_images_is_still_known_by_its_text(name):
    about = planted(classes=6)
    shown = about.id_labels != 5
    some = replace(about, id_vectors=about.id_vectors[shown], id_labels=about.id_labels[shown])
    detector = make_detector(name).fit(some)
    like_five = unit(about.text[5] + 0.5 * rows(30))
    assert auroc(detector.score(like_five), detector.score(rows(30, seed=4))) > 0.9


def test_copies_of_a_known_image_weigh_much_but_not_beyond_measure():
    # Classes that lie no nearer than their images: without a bound e^(beta (1 - w)) would overflow.
    random = np.random.default_rng(0)
    about = replace(planted(), id_vectors=unit(random.standard_normal((30, DIM))))
    for name in ("tip", "tip_neglabel"):
        detector = make_detector(name).fit(about)
        scores = detector.score(np.concatenate([about.id_vectors, rows()]))
        low, high = detector.score_range()
        assert np.isfinite([low, high]).all()
        assert (low <= scores).all()
        assert (scores <= high).all()


@pytest.mark.parametrize("classes", [2, 5])
def test_the_probe_scores_as_scikit_learn_does(classes):
    linear = pytest.importorskip("sklearn.linear_model")
    about = planted(classes=classes)
    model = linear.LogisticRegression(C=10, max_iter=1000).fit(about.id_vectors.astype(float), about.id_labels)
    p = model.predict_proba(rows().astype(float))
    np.testing.assert_allclose(make_detector("probe", base="msp").fit(about).score(rows()), -p.max(axis=1), atol=1e-5)


def test_the_probe_refuses_images_of_one_class():
    about = replace(planted(), id_labels=np.zeros(30, int))
    with pytest.raises(UsageError, match="two classes"):
        make_detector("probe").fit(about)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("tip", {"base": "mcm"}, "base must be one of msp, max_logit, energy"),
        ("tip_neglabel", {"base": "msp"}, "base must be one of neglabel, csp, eoe"),
        ("probe", {"base": 3}, "base"),
        ("probe", {"c": 0}, "c must be above 0"),
        ("prototypes", {"text_weight": 1.5}, "text_weight must be a number from 0 to 1"),
        ("tip", {"strength": -1}, "strength must be a number from 0 on"),
        ("tip", {"sharpness": "much"}, "sharpness"),
        ("tip", {"strength": float("inf")}, "strength"),
        ("tip_neglabel", {"strength": float("nan")}, "strength"),
        ("tip_neglabel", {"groups": 0}, "groups"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name, params, said):
    with pytest.raises(UsageError, match=said):
        make_detector(name, **params)


@pytest.mark.parametrize("name", ["tip", "prototypes"])
def test_one_class_takes_a_base_that_one_class_can_have(name):
    about = planted(classes=1)
    detector = make_detector(name).fit(about)
    assert auroc(detector.score(about.id_vectors), detector.score(rows())) > 0.9
    with pytest.raises(UsageError, match="max_logit"):
        make_detector(name, base="msp").fit(about)


@pytest.mark.long
def test_four_images_a_class_help_where_words_tell_too_little(dev, lite):
    # Named in advance (issue 6): 4 shots, 100 classes of Tiny ImageNet against 50 others, 5 draws of the shots.
    known, files = vectors_of(dev / "tinyimagenet_id100", lite)
    unknown, _ = vectors_of(dev / "tinyimagenet_near50", lite)
    folders = sorted({file.parent.name for file in files})
    labels = np.array([folders.index(file.parent.name) for file in files])
    class_set = ClassSet.build([folder.replace("_", " ") for folder in folders], lite)
    zero, tip = (choose_detector(name, lite.info, None) for name in (None, "tip_neglabel"))
    words = mine(class_set, lite, **mining(zero, lite.info))
    about = judged_with(class_set, words, lite.info)
    zero.fit(about)
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        shots = np.concatenate([random.permutation(np.flatnonzero(labels == k))[:SHOTS] for k in range(100)])
        rest = np.setdiff1d(np.arange(len(known)), shots)
        assert (len(rest), len(unknown)) == (600, 400)
        tip.fit(replace(about, id_vectors=known[shots], id_labels=labels[shots]))
        sides = [(one.score(known[rest]), one.score(unknown)) for one in (tip, zero)]
        gain = paired_bootstrap(metrics.auroc, *sides)
        assert gain.low > 0, gain


def vectors_of(folder, encoder):
    """(n, d) of a folder's images, and the files."""
    from outclass.encoders.stream import encode_stream
    from outclass.images.loader import Reader
    from outclass.images.sources import Files

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    batches = list(encode_stream(Files(files), encoder, Reader(encoder.info.preprocess)))
    assert not any(error for batch in batches for error in batch.errors)
    return np.concatenate([batch.vectors for batch in batches]), files
