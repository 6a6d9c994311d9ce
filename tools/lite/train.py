"""Fit the image head and the text head on frozen features: about a minute on two cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, log_softmax, normalize

from tools.lite.export import Head
from tools.lite.features import Examples
from tools.lite.sentences import Sentences
from tools.lite.words import Concept


@dataclass(frozen=True)
class Settings:
    """Chosen on the 'no' sets of train and on dev (tuning, which the licences allow); README.md says what was tried."""

    seed: int = 0
    dim: int = 256
    hidden: int = 1024
    epochs: int = 14
    batch: int = 512
    rate: float = 1e-3
    decay: float = 0.05
    dropout: float = 0.3
    invented: int = 12000  # features made from the classifier's weights
    kinds: float = 0.4  # how often the text of an image is a hypernym ("dog") and not a name ("Samoyed")
    synonyms: float = 0.4  # how often a name is any of the names and not the first
    soft: float = 1.0  # weight of the classifier's soft predictions on photographs
    shape: float = 10.0  # weight of keeping MiniLM's similarities between texts
    share: float = 0.8  # of the classifier's voice in the image vector
    heat: float = 1.4  # the classifier's logits are multiplied by this before its softmax
    voice_kinds: float = 0.75  # share of hypernyms in the class texts of the voice


def invent_features(
    photos: np.ndarray, weight: np.ndarray, bias: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Feature-like vectors of the 1000 classes, without an image: (count, 1280) and their classes (count,).

    A photograph's feature, drawn towards the mean, is moved along (feature covariance x weight row of the class):
    the likeliest direction that raises its logit, until the class leads by 1 to 6.
    """
    mean, centred = photos.mean(0), weight - weight.mean(0)
    ways = centred @ np.cov(photos.T)
    ways /= np.maximum((ways * centred).sum(1, keepdims=True), 1e-6)  # a step of 1 raises the own logit by 1
    classes, rows = np.arange(count) % len(weight), np.arange(count)
    made = mean + (photos[rng.integers(len(photos), size=count)] - mean) * rng.uniform(0.3, 0.9, (count, 1))
    for _ in range(3):
        logits = made @ weight.T + bias
        own = logits[rows, classes].copy()
        logits[rows, classes] = -np.inf
        missing = np.maximum(logits.max(1) + rng.uniform(1, 6, count) - own, 0)
        made = np.maximum(made + ways[classes] * missing[:, None], 0)  # features end in ReLU6: never negative
    return made.astype(np.float32), classes


class _Texts:
    """Concepts as rows of the word bank, to draw positive texts from.

    Attributes:
        positive: (concepts, words) bool, every text that is true of a concept.
    """

    def __init__(self, concepts: list[Concept], bank: list[str]) -> None:
        place = {word: row for row, word in enumerate(bank)}
        self.names = _padded([[place[word] for word in concept.names] for concept in concepts])
        self.kinds = _padded([[place[word] for word in concept.kinds] for concept in concepts])
        self.positive = torch.zeros(len(concepts), len(bank), dtype=torch.bool)
        for row, concept in enumerate(concepts):
            self.positive[row, [place[word] for word in concept.texts]] = True

    def draw(self, concept: Tensor, settings: Settings) -> Tensor:
        """One positive text for each concept (n,) -> (n,)."""
        first = self.names[0][concept, 0]
        name = torch.where(torch.rand(len(concept)) < settings.synonyms, _pick(self.names, concept), first)
        use_kind = (torch.rand(len(concept)) < settings.kinds) & (self.kinds[1][concept] > 0)
        return torch.where(use_kind, _pick(self.kinds, concept), name)


def _padded(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in lists)
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in lists])
    return rows, torch.tensor([len(row) for row in lists])


def _pick(lists: tuple[Tensor, Tensor], concept: Tensor) -> Tensor:
    rows, lengths = lists[0][concept], lists[1][concept]
    return rows.gather(1, (torch.rand(len(concept)) * lengths).long().unsqueeze(1)).squeeze(1)


class ImageHead(nn.Module):
    """(n, 1280) -> (n, d): standardise, then linear skip + one hidden layer."""

    def __init__(self, features: Tensor, settings: Settings) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0) + 0.05)
        self.drop = nn.Dropout(settings.dropout)
        self.skip = nn.Linear(1280, settings.dim)
        self.up, self.down = nn.Linear(1280, settings.hidden), nn.Linear(settings.hidden, settings.dim, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.mean) / self.std
        return self.skip(x) + self.down(self.drop(gelu(self.up(self.drop(x)))))


def train(
    examples: Examples, sentences: Sentences, classifier: tuple[np.ndarray, np.ndarray], settings: Settings
) -> Head:
    """Cross-entropy of each image against the texts of all concepts; all other true texts are left out of the sum."""
    torch.manual_seed(settings.seed)
    weight, bias = classifier
    rng = np.random.default_rng(settings.seed)
    invented, classes = invent_features(examples.features[: examples.photos], weight, bias, settings.invented, rng)
    features = torch.tensor(np.concatenate([examples.features, invented]))
    known = sentences.imagenet + list(dict.fromkeys(examples.concepts))
    number = {concept: row for row, concept in reversed(list(enumerate(known)))}
    concept = torch.tensor([number[item] for item in examples.concepts] + classes.tolist())
    texts = _Texts(known, sentences.bank)
    probabilities = torch.softmax(features @ torch.tensor(weight).T + torch.tensor(bias), 1)

    centre = torch.tensor(sentences.centre)
    bank = torch.tensor(sentences.vectors) - centre  # (templates, words, 384)
    wide = normalize(torch.cat([bank.mean(0), torch.tensor(sentences.others) - centre]), dim=1)
    leaf = texts.names[0][:1000, 0]

    image, text = ImageHead(features, settings), nn.Linear(384, settings.dim, bias=False)
    text.weight.data = torch.linalg.svd(wide, full_matrices=False).Vh[: settings.dim].clone()
    log_scale = nn.Parameter(torch.tensor(3.0))
    optimiser = torch.optim.AdamW(
        [
            {"params": list(image.parameters()), "weight_decay": settings.decay},
            {"params": [*text.parameters(), log_scale], "weight_decay": 0.0},
        ]
    )
    steps = len(features) // settings.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=settings.epochs * steps, pct_start=0.15
    )
    for _ in range(settings.epochs):
        order = torch.randperm(len(features))
        for step in range(steps):
            rows = order[step * settings.batch : (step + 1) * settings.batch]
            wordings = torch.rand(len(bank)) < 0.4
            wordings[torch.randint(len(bank), (1,))] = True
            names = normalize(text(bank[wordings].mean(0)), dim=1)  # (words, d)
            x = features[rows]
            vectors = normalize(image(x * (1 + 0.1 * torch.randn_like(x))), dim=1)
            logits = log_scale.exp().clamp(max=60) * vectors @ names.T
            target = texts.draw(concept[rows], settings)
            also_true = texts.positive[concept[rows]]
            also_true[torch.arange(len(rows)), target] = False
            loss = cross_entropy(logits.masked_fill(also_true, -1e4), target)
            photos = rows < examples.photos
            if photos.any() and settings.soft:
                heard = -(probabilities[rows[photos]] * log_softmax(logits[photos][:, leaf], 1)).sum(1)
                loss = loss + settings.soft * heard.sum() / len(rows)
            some = wide[torch.randint(len(wide), (384,))]
            moved = normalize(text(some), dim=1)
            loss = loss + settings.shape * ((some @ some.T - moved @ moved.T) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return _pack(image, text, float(log_scale.exp()), sentences, classifier, settings)


def _pack(
    image: ImageHead,
    text: nn.Linear,
    scale: float,
    sentences: Sentences,
    classifier: tuple[np.ndarray, np.ndarray],
    settings: Settings,
) -> Head:
    """Fold the standardisation into the weights and the centre into the text bias."""

    def plain(tensor: Tensor) -> np.ndarray:
        return tensor.detach().double().numpy()

    mean, std = plain(image.mean), plain(image.std)
    skip, up, rotate = plain(image.skip.weight) / std, plain(image.up.weight) / std, plain(text.weight)
    arrays = {
        "skip": skip.T,
        "skip_bias": plain(image.skip.bias) - skip @ mean,
        "up": up.T,
        "up_bias": plain(image.up.bias) - up @ mean,
        "down": plain(image.down.weight).T,
        "classes": settings.heat * classifier[0].T,
        "classes_bias": settings.heat * classifier[1],
        "voice": settings.share * class_texts(sentences, rotate, settings.voice_kinds),
        "text": rotate.T,
        "text_bias": -rotate @ sentences.centre,
    }
    return Head(**{name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, scale=scale)


def class_texts(sentences: Sentences, rotate: np.ndarray, kinds: float) -> np.ndarray:
    """(1000, d) unit text vectors of the ImageNet classes: first name, plus a share of the mean of the kinds."""
    place = {word: row for row, word in enumerate(sentences.bank)}
    words = (sentences.vectors.mean(0) - sentences.centre) @ rotate.T
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    rows = []
    for concept in sentences.imagenet:
        row = words[place[concept.names[0]]]
        if concept.kinds:
            row = row + kinds * words[[place[word] for word in concept.kinds]].mean(0)
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)
