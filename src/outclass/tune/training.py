"""CoOp and LoCoOp: what is minimised, and the steps that do it.

CoOp: Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022. LoCoOp: Miyai et al., LoCoOp: Few-Shot
Out-of-Distribution Detection via Prompt Learning, NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from outclass.encoders.base import Vectors
from outclass.encoders.prompt_tower import PromptTower
from outclass.errors import UsageError
from outclass.progress import track
from outclass.tune.shots import Shots

METHODS = ("coop", "locoop")
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
WARM_UP_LR = 1e-5  # for the first epoch
SPREAD = 0.02  # standard deviation of a context that starts by chance
ORDER = 3  # what the seed is for here; 1 and 2 are the draw of images and the start
CLASSES_A_TOP = 5  # of LoCoOp's K classes one fifth is top: 200 of ImageNet's 1000


@dataclass(frozen=True)
class Settings:
    """How prompts are tuned; as published, where not said otherwise.

    Attributes:
        method: ``coop`` or ``locoop``.
        shots: images a class.
        context: how many vectors of context, started by chance, N(0, 0.02); or words to start them from.
        epochs: passes over the images.
        lr: learning rate of the second epoch, falling to 0 along a cosine; the first has 1e-5.
        batch_size: images a step.
        seed: of the draw of images, of the start, and of the order of images.
        local_weight: lambda of LoCoOp, 0 and up; 0 = CoOp.
        top_k: of LoCoOp: places that have their image's class among so many best are left alone; None = a fifth of
            the classes, at least 1 (published: 200 of 1000).

    Raises:
        UsageError: a value out of its range.
    """

    method: str = "coop"
    shots: int = 16
    context: int | str = 16
    epochs: int = 50
    lr: float = 2e-3
    batch_size: int = 32
    seed: int = 0
    local_weight: float = 0.25
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}; expected one of {', '.join(METHODS)}")
        counts = {"shots": self.shots, "epochs": self.epochs, "batch_size": self.batch_size}
        counts |= {"context": self.context} if not isinstance(self.context, str) else {}
        counts |= {"top_k": self.top_k} if self.top_k is not None else {}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number from 1 on, got {value!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed must be a whole number from 0 on, got {self.seed!r}")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr must be a number above 0, got {self.lr!r}")
        if not 0 <= self.local_weight < math.inf:
            raise UsageError(f"local_weight must be a number from 0 on, got {self.local_weight!r}")

    @property
    def local(self) -> bool:
        """Whether local vectors are needed."""
        return self.method == "locoop" and self.local_weight > 0

    def for_classes(self, k: int) -> Settings:
        """The same for K classes, with ``top_k`` a number.

        Raises:
            UsageError: a single class, or a top that holds every class.
        """
        if k < 2:
            raise UsageError(f"prompts are tuned to tell classes apart, which takes two and more; got {k}")
        top_k = self.top_k or max(1, round(k / CLASSES_A_TOP))
        if self.local and top_k >= k:
            raise UsageError(
                f"top_k = {top_k} of {k} classes holds every class, so no place would ever count as background; use a "
                f"smaller one, such as --top-k {max(1, round(k / CLASSES_A_TOP))}"
            )
        return replace(self, top_k=top_k)

    def learning_rate(self, epoch: int) -> float:
        """Of an epoch counted from 0: a constant first, then a cosine that starts at ``lr``."""
        return WARM_UP_LR if epoch == 0 else self.lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))


@dataclass(frozen=True, eq=False)
class State:
    """Where the tuning stands, after whole epochs. The order of images comes from seed and epoch: no more is needed.

    Attributes:
        context: (n, width) float32.
        momentum: the same shape, of the optimiser.
        losses: mean loss of each epoch done.
    """

    context: Vectors
    momentum: Vectors
    losses: tuple[float, ...] = ()

    @classmethod
    def start(cls, context: Vectors) -> State:
        """Before the first epoch."""
        return cls(context, np.zeros_like(context))


def local_entropy(logits: torch.Tensor, labels: torch.Tensor, top_k: int) -> torch.Tensor:
    """Mean entropy of the places that show nothing of their image's class (LoCoOp, section 3.2).

    Args:
        logits: (b, p, K) of p places of b images: logit scale times cosine.
        labels: (b,) int64 classes of the images.
        top_k: a place counts whose ``top_k`` best classes do not contain its image's.

    Returns:
        Mean over the places that count of -sum_k p_k log p_k, in nats; 0 where none does.
    """
    top = logits.topk(top_k, dim=2).indices
    counts = (top != labels[:, None, None]).all(dim=2)
    logs = logits.log_softmax(dim=2)
    entropy = -(logs.exp() * logs).sum(dim=2)
    return (entropy * counts).sum() / counts.sum().clamp(min=1)


def loss_of(
    texts: torch.Tensor,
    vectors: torch.Tensor,
    labels: torch.Tensor,
    scale: float,
    patches: torch.Tensor | None = None,
    local_weight: float = 0.0,
    top_k: int = 1,
) -> torch.Tensor:
    """Cross-entropy of scale * cos, less ``local_weight`` times the entropy of places without the class.

    Args:
        texts: (K, d) unit rows.
        vectors: (b, d) unit rows.
        labels: (b,) int64.
        scale: the model's own logit scale.
        patches: (b, p, d) unit rows; None = CoOp.
        local_weight: lambda.
        top_k: see ``local_entropy``.
    """
    loss = torch.nn.functional.cross_entropy(scale * vectors @ texts.T, labels)
    if patches is None:
        return loss
    return loss - local_weight * local_entropy(scale * patches @ texts.T, labels, top_k)


def train(
    tower: PromptTower,
    shots: Shots,
    scale: float,
    settings: Settings,
    state: State,
    after_epoch: Callable[[State], None] = lambda state: None,
    progress: bool = False,
) -> State:
    """Go on from a state to the last epoch: SGD with momentum 0.9 and weight decay 5e-4.

    Args:
        tower: makes class vectors from a context.
        shots: n encoded images.
        scale: logit scale.
        settings: with ``top_k`` a number, see ``Settings.for_classes``.
        state: where to go on.
        after_epoch: called with the state after every epoch.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: the loss is no finite number any more.
    """
    device, top_k = tower.table.weight.device, settings.top_k or 1
    context = torch.tensor(state.context, device=device, requires_grad=True)
    momentum = torch.tensor(state.momentum, device=device)
    vectors, labels = torch.from_numpy(shots.vectors).to(device), torch.from_numpy(shots.labels).to(device)
    n, done = len(shots.ids), len(state.losses)
    steps: Iterator[tuple[int, list[int]]] = _steps(settings, n, done)
    if progress:
        steps = track(steps, (settings.epochs - done) * math.ceil(n / settings.batch_size), "tuning, steps")
    total, seen = 0.0, 0
    for epoch, rows in steps:
        # Local vectors stay on the host, there may be gigabytes of them.
        places = None if shots.patches is None else torch.from_numpy(shots.patches[rows]).to(device)
        loss = loss_of(tower(context), vectors[rows], labels[rows], scale, places, settings.local_weight, top_k)
        (gradient,) = torch.autograd.grad(loss, context)
        with torch.no_grad():
            momentum.mul_(MOMENTUM).add_(gradient + WEIGHT_DECAY * context)
            context -= settings.learning_rate(epoch) * momentum
        total, seen = total + float(loss.detach()) * len(rows), seen + len(rows)
        if not math.isfinite(total):
            raise UsageError(
                f"the loss is no finite number any more in epoch {epoch + 1}; use a smaller learning rate than "
                f"{settings.lr:g} (--lr)"
            )
        if seen == n:
            whole = context.detach().cpu().numpy().copy(), momentum.cpu().numpy().copy()
            state = State(*whole, (*state.losses, total / n))
            after_epoch(state)
            total, seen = 0.0, 0
    return state


def _steps(settings: Settings, n: int, done: int) -> Iterator[tuple[int, list[int]]]:
    """(epoch, rows of the images) of every step that is left; the last step of an epoch may be smaller."""
    for epoch in range(done, settings.epochs):
        order = np.random.default_rng([settings.seed, ORDER, epoch]).permutation(n).tolist()
        for start in range(0, n, settings.batch_size):
            yield epoch, order[start : start + settings.batch_size]
