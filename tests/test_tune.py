"""CoOp and LoCoOp on tiny random checkpoints: the tower behind a context, the losses, the steps."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)
from conftest import unit  # noqa: E402

from outclass import UsageError, load_encoder  # noqa: E402
from outclass.encoders import prompt_tower  # noqa: E402
from outclass.encoders.prompt_tower import PromptTower, encode_names, word_context  # noqa: E402
from outclass.errors import MismatchError  # noqa: E402
from outclass.tune import training  # noqa: E402
from outclass.tune.shots import Shots  # noqa: E402
from outclass.tune.training import Settings, State, local_entropy, loss_of, train  # noqa: E402

FAMILIES = {
    "clip": (checkpoints.save_clip, ["cat", "dog", "red car", "bird"], "a photo of a"),
    "metaclip2": (checkpoints.save_metaclip2, ["cat", "dog", "red car", "bird"], "a photo of a"),
    "altclip": (checkpoints.save_altclip, ["cat", "dog", "red car", "bird"], "a photo of a"),
    "siglip": (checkpoints.save_siglip, ["cat", "dog", "red car", "bird"], "a photo of a"),
    "siglip2": (checkpoints.save_siglip2, ["cat", "dog", "red car", "bird"], "a photo of a"),
    "chinese_clip": (checkpoints.save_chinese_clip, ["猫", "狗", "汽车", "红"], "一张"),
}
NAMES = ["cat", "dog", "car", "bird", "tree"]
N_CONTEXT = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save(root / family) for family, (save, _, _) in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clip(folders):
    return load_encoder(str(folders["clip"]), device="cpu")


def double(encoder):
    """The encoder with its text tower in float64."""
    encoder.text.double()
    return encoder


def planted(tower, n_per_class=8, seed=0, patches=0, noise=0.02):
    """Images around the class vectors of some other context, so that a better context than the start's exists."""
    chance = np.random.default_rng(seed)
    with torch.no_grad():
        texts = tower(torch.from_numpy(chance.normal(0, 1, (tower.length, tower.width)).astype(np.float32))).numpy()
    labels = np.repeat(np.arange(len(texts)), n_per_class)
    vectors = unit(texts[labels] + noise * chance.standard_normal((len(labels), texts.shape[1])))
    local = None
    if patches:
        shape = (len(labels), patches, texts.shape[1])
        local = unit(chance.standard_normal(shape).reshape(-1, shape[2])).reshape(shape)
    return Shots(tuple(map(str, range(len(labels)))), labels, vectors, local)


def start(tower, seed=1):
    return State.start(np.random.default_rng(seed).normal(0, 0.02, (tower.length, tower.width)).astype(np.float32))


# The tower behind a context


def test_a_context_of_words_gives_the_vectors_of_the_words(family, folders):
    _, names, words = FAMILIES[family]
    encoder = load_encoder(str(folders[family]), device="cpu")
    context = word_context(words, encoder)
    sep = "" if family == "chinese_clip" else " "
    plain = encoder.encode_texts([f"{words}{sep}{name}." for name in names])
    np.testing.assert_allclose(encode_names(names, context, encoder), plain, atol=2e-6)
    other = encode_names(names, context[::-1].copy(), encoder)
    assert abs(other - plain).max() > 1e-3  # and another context gives others


def test_a_class_does_not_depend_on_the_others(clip):
    context = np.random.default_rng(0).normal(0, 1, (N_CONTEXT, 32)).astype(np.float32)
    together = encode_names(["cat", "one two three four five six"], context, clip)
    np.testing.assert_allclose(encode_names(["cat"], context, clip)[0], together[0], atol=1e-6)


def test_the_encoder_is_as_before_when_a_tower_has_run(clip):
    before = clip.encode_texts(NAMES)
    PromptTower(clip, NAMES, 4)(torch.ones(4, 32))
    np.testing.assert_array_equal(clip.encode_texts(NAMES), before)
    with pytest.raises(RuntimeError):
        PromptTower(clip, NAMES, 4)(torch.ones(4, 31))
    np.testing.assert_array_equal(clip.encode_texts(NAMES), before)


@pytest.mark.parametrize("length", [1, 6])
def test_the_gradient_is_that_of_finite_differences(family, folders, length):
    encoder = double(load_encoder(str(folders[family]), device="cpu"))
    tower = PromptTower(encoder, FAMILIES[family][1], length)
    chance = np.random.default_rng(3)
    context = torch.tensor(chance.normal(0, 0.5, (length, tower.width)), requires_grad=True)
    width = encoder.info.dim
    vectors = torch.from_numpy(unit(chance.standard_normal((5, width)))).double()
    places = torch.from_numpy(unit(chance.standard_normal((15, width)))).double().reshape(5, 3, width)
    labels = torch.tensor([0, 1, 2, 3, 0])

    def loss(value):
        return loss_of(tower(value), vectors, labels, 10.0, places, local_weight=0.7, top_k=1)

    (gradient,) = torch.autograd.grad(loss(context), context)
    assert gradient.abs().max() > 1e-3
    for _ in range(4):
        way = torch.from_numpy(chance.standard_normal(context.shape))
        with torch.no_grad():
            slope = (loss(context + 1e-5 * way) - loss(context - 1e-5 * way)) / 2e-5
        assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


def test_many_classes_in_several_runs_have_the_same_gradient(clip, monkeypatch):
    tower = PromptTower(clip, NAMES, N_CONTEXT)
    context = torch.from_numpy(start(tower).context).requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((len(NAMES), 24))).float()
    found = []
    for run in (64, 2):
        monkeypatch.setattr(prompt_tower, "TEXTS_A_RUN", run)
        rows = tower(context)
        found.append((rows.detach(), *torch.autograd.grad((rows * weights).sum(), context)))
    for one, parts in zip(*found, strict=True):
        torch.testing.assert_close(one, parts, rtol=0, atol=1e-5 * float(one.abs().max()))


def test_a_name_that_does_not_fit_is_refused(clip):
    room = checkpoints.CONTEXT - 5  # start, "cat", ".", end, and one to spare
    assert PromptTower(clip, ["cat"], room).ids.shape == (1, checkpoints.CONTEXT - 1)
    for name, length in (("cat", room + 1), ("cat", 60), ("one two three four five six " * 4, 1)):
        with pytest.raises(UsageError, match="does not fit behind"):
            PromptTower(clip, ["dog", name], length)


def test_other_encoders_are_refused():
    with pytest.raises(UsageError, match="use a torch encoder"):
        PromptTower(load_encoder("toy"), NAMES, 4)


def test_a_context_of_another_width_is_refused(clip):
    with pytest.raises(MismatchError, match="length 31"):
        encode_names(NAMES, np.ones((4, 31), np.float32), clip)


@pytest.mark.parametrize("words", ["", " "])
def test_a_context_of_no_words_is_refused(clip, words):
    with pytest.raises(UsageError, match="expected words"):
        word_context(words, clip)


# The losses


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 7)),
    top=st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_the_local_term_is_the_formula(seed, shape, top):
    b, p, k = shape
    top = min(top, k)
    chance = np.random.default_rng(seed)
    logits, labels = chance.normal(0, 3, shape), chance.integers(0, k, b)
    entropies = []
    for image in range(b):
        for place in range(p):
            best = sorted(range(k), key=lambda c, row=logits[image, place]: -row[c])[:top]
            if labels[image] not in best:
                chances = np.exp(logits[image, place])
                chances /= chances.sum()
                entropies.append(-sum(one * math.log(one) for one in chances))
    expected = np.mean(entropies) if entropies else 0.0
    found = local_entropy(torch.from_numpy(logits), torch.from_numpy(labels), top)
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_unsure_background_is_what_locoop_rewards():
    texts = torch.eye(3)
    vectors, labels = torch.eye(3)[:1], torch.tensor([0])
    sure = torch.tensor([[[0.0, 1.0, 0.0]]])  # a place that shows class 1
    unsure = torch.nn.functional.normalize(torch.tensor([[[0.0, 1.0, 1.0]]]), dim=2)
    of_class = torch.tensor([[[1.0, 0.0, 0.0]]])
    losses = [
        float(loss_of(texts, vectors, labels, 5.0, one, local_weight=0.25, top_k=1)) for one in (sure, unsure, of_class)
    ]
    plain = float(loss_of(texts, vectors, labels, 5.0))
    assert losses[1] < losses[0] < plain
    assert losses[2] == plain  # a place that shows the class is left alone


def test_the_loss_is_the_cross_entropy_of_scaled_cosines():
    chance = np.random.default_rng(0)
    texts, vectors = (unit(chance.standard_normal((n, 6))) for n in (4, 7))
    labels = chance.integers(0, 4, 7)
    logits = 12.0 * vectors @ texts.T
    expected = np.mean([np.log(np.exp(row).sum()) - row[y] for row, y in zip(logits, labels, strict=True)])
    found = loss_of(torch.from_numpy(texts), torch.from_numpy(vectors), torch.from_numpy(labels), 12.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)


# The steps


def test_tuning_learns_what_was_planted(clip):
    tower = PromptTower(clip, NAMES, N_CONTEXT)
    shots, begun = planted(tower), start(tower)

    def accuracy(context):
        return ((shots.vectors @ encode_names(NAMES, context, clip).T).argmax(axis=1) == shots.labels).mean()

    how = Settings(epochs=20, lr=2e-3, batch_size=8)
    state = train(tower, shots, 20.0, how, begun)
    assert len(state.losses) == 20
    assert state.losses[-1] < 0.7 * state.losses[0]
    assert accuracy(state.context) > accuracy(begun.context) + 0.2


def test_locoop_makes_the_background_less_sure(clip):
    tower = PromptTower(clip, NAMES, N_CONTEXT)
    shots, begun = planted(tower, patches=4), start(tower)

    def unsure(local_weight):
        how = Settings("locoop", epochs=12, lr=2e-3, local_weight=local_weight).for_classes(len(NAMES))
        texts = torch.from_numpy(encode_names(NAMES, train(tower, shots, 20.0, how, begun).context, clip))
        return float(local_entropy(20.0 * torch.from_numpy(shots.patches) @ texts.T, torch.from_numpy(shots.labels), 1))

    assert unsure(2.0) > unsure(0.0)


def test_lambda_0_is_coop_to_the_bit(clip):
    tower = PromptTower(clip, NAMES, N_CONTEXT)
    shots, begun = planted(tower, patches=4), start(tower)
    how = Settings("locoop", epochs=4, lr=2e-3, local_weight=0.0).for_classes(len(NAMES))
    locoop = train(tower, shots, 20.0, how, begun)
    coop = train(tower, dataclasses.replace(shots, patches=None), 20.0, dataclasses.replace(how, method="coop"), begun)
    assert locoop.context.tobytes() == coop.context.tobytes()
    assert locoop.losses == coop.losses
    other = train(tower, shots, 20.0, dataclasses.replace(how, local_weight=0.25), begun)
    assert other.context.tobytes() != coop.context.tobytes()


def test_the_steps_are_those_of_torch(clip):
    """SGD with momentum and weight decay, cosine after one epoch of warm-up, against torch's own."""
    tower = PromptTower(clip, NAMES, 3)
    shots, begun = planted(tower), start(tower)
    how = Settings(epochs=6, lr=2e-3, batch_size=16, seed=4)
    context = torch.tensor(begun.context, requires_grad=True)
    sgd = torch.optim.SGD([context], lr=how.lr, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, how.epochs)
    vectors, labels = torch.from_numpy(shots.vectors), torch.from_numpy(shots.labels)
    for epoch in range(how.epochs):
        for group in sgd.param_groups:
            if epoch == 0:
                group["lr"] = 1e-5
            elif epoch == 1:
                group["lr"] = how.lr
        for at, rows in training._steps(how, len(shots.ids), epoch):
            if at == epoch:
                sgd.zero_grad()
                loss_of(tower(context), vectors[rows], labels[rows], 20.0).backward()
                sgd.step()
        if epoch:
            cosine.step()
    np.testing.assert_allclose(
        train(tower, shots, 20.0, how, begun).context, context.detach().numpy(), rtol=1e-4, atol=1e-6
    )


def test_every_epoch_sees_every_image_once_in_another_order():
    orders = {}
    for epoch, rows in training._steps(Settings(epochs=3, batch_size=4), 10, 0):
        orders.setdefault(epoch, []).extend(rows)
    assert [sorted(order) for order in orders.values()] == [list(range(10))] * 3
    assert len({tuple(order) for order in orders.values()}) == 3
    again = list(training._steps(Settings(epochs=3, batch_size=4), 10, 2))
    assert [row for _, rows in again for row in rows] == orders[2]  # whatever came before


def test_going_on_from_any_epoch_ends_the_same(clip):
    tower = PromptTower(clip, NAMES, 3)
    shots, how = planted(tower, patches=2), Settings("locoop", epochs=5, lr=2e-3, batch_size=8).for_classes(5)
    states = []
    whole = train(tower, shots, 20.0, how, start(tower), states.append)
    assert len(states) == 5
    for state in states:
        again = train(tower, shots, 20.0, how, state)
        assert again.context.tobytes() == whole.context.tobytes()
        assert again.losses == whole.losses


def test_a_loss_that_runs_away_is_an_error(clip):
    tower = PromptTower(clip, NAMES, 3)
    with pytest.raises(UsageError, match="smaller learning rate than 1e\\+30"):
        train(tower, planted(tower), 20.0, Settings(epochs=5, lr=1e30), start(tower))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "cocoop"}, "unknown method"),
        ({"shots": 0}, "shots"),
        ({"context": 0}, "context"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": True}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"local_weight": -0.1}, "local_weight"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Settings(**wrong)


@pytest.mark.parametrize(("k", "top"), [(2, 1), (5, 1), (7, 1), (10, 2), (100, 20), (1000, 200)])
def test_the_top_is_a_fifth_of_the_classes(k, top):
    assert Settings().for_classes(k).top_k == top


def test_a_top_of_all_classes_and_a_single_class_are_refused():
    with pytest.raises(UsageError, match="--top-k 1"):
        Settings("locoop", top_k=5).for_classes(5)
    assert Settings("coop", top_k=5).for_classes(5).top_k == 5  # which coop does not use
    with pytest.raises(UsageError, match="two and more"):
        Settings().for_classes(1)
