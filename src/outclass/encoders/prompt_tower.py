"""A text tower behind a learned context: vectors that stand before every class name, where words stood (CoOp).

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, section 3.2: the context is shared by all
classes, the name and a full stop follow. Only the context learns; towers and name tokens are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from outclass.encoders.base import Encoder, Vectors
from outclass.errors import EncoderError, MismatchError, MissingExtraError, UsageError

try:
    import torch
    from torch import nn
except ImportError as missing:
    raise MissingExtraError(missing.name or "torch", "torch", "a learned context") from missing

from outclass.encoders.torch_towers import TEXTS_A_RUN, TorchEncoder

PLACE = "a"  # one token of any tokenizer; stands where the context goes
EMBEDDINGS = ("token_embedding", "word_embeddings")  # as the families call their tables of tokens


class PromptTower:
    """Class names behind a context -> unit rows, differentiable in the context.

    The texts are tokenized with words in the context's place, so that start, end and padding are the tokenizer's own;
    the tower then runs as it always does, but the vectors of these words are replaced by the context.

    Args:
        encoder: a torch encoder; its text tower is shared, not copied.
        names: K class names.
        length: n vectors of context.

    Raises:
        UsageError: no torch encoder, or a name that does not fit behind the context.
        EncoderError: a text tower or a tokenizer that cannot be used so.
    """

    def __init__(self, encoder: Encoder, names: Sequence[str], length: int) -> None:
        self.text = torch_encoder(encoder).text
        self.table = token_table(encoder)
        self.start = _start(encoder)
        self.length = length
        self.ids, self.mask = self._tokens(encoder, names)

    @property
    def width(self) -> int:
        """Length of a vector of the context."""
        return self.table.embedding_dim

    def __call__(self, context: torch.Tensor) -> torch.Tensor:
        """(n, width) context -> (K, d) unit rows of its precision.

        Of many classes only one run's inner values are held for the gradient; they are computed twice.
        """
        if len(self.ids) <= TEXTS_A_RUN:
            return self._rows(context, self.ids, self.mask)
        return _Runs.apply(context, self)

    def runs(self) -> Iterator[tuple[slice, Callable[[torch.Tensor], torch.Tensor]]]:
        """Parts of the classes: which rows they are, and what makes them from a context."""
        for start in range(0, len(self.ids), TEXTS_A_RUN):
            part = slice(start, start + TEXTS_A_RUN)
            yield part, partial(self._rows, ids=self.ids[part], mask=self.mask[part])

    def _rows(self, context: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first, behind = self.start, self.start + self.length

        def put(module: nn.Module, given: Any, tokens: torch.Tensor) -> torch.Tensor:
            shared = context.expand(len(tokens), -1, -1)
            return torch.cat([tokens[:, :first], shared, tokens[:, behind:]], dim=1)

        hook = self.table.register_forward_hook(put)
        try:
            return nn.functional.normalize(self.text.raw(ids, mask), dim=-1, eps=1e-12)
        finally:
            hook.remove()

    def _tokens(self, encoder: Encoder, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokenize = torch_encoder(encoder).tokenize
        texts = [f"{PLACE} " * self.length + f"{name}." for name in names]
        ids, mask = tokenize(texts)
        longer, _ = tokenize([f"{PLACE} {text}" for text in texts])
        # A row that was cut, or whose places are no single tokens, is not its longer one less a place.
        second = self.start + 1  # some tokenizers write a first word without the space before it
        shorter = torch.cat([longer[:, :second], longer[:, second + 1 :]], dim=1)
        same = shorter.shape[1]
        if same > ids.shape[1] or ids.shape[1] - same > 1:
            raise EncoderError(
                f"the tokenizer of {encoder.info.name!r} does not make one token of the word {PLACE!r}, which holds "
                "the context's place; tune another encoder"
            )
        for name, row, other in zip(names, ids[:, :same], shorter, strict=True):
            if not torch.equal(row, other):
                raise UsageError(
                    f"the class {name!r} does not fit behind {self.length} vectors of context: the text tower of "
                    f"{encoder.info.name!r} takes {ids.shape[1]} tokens, one of them to spare; use a shorter context "
                    "(--context 4) or a shorter name"
                )
        device = self.table.weight.device
        return ids.to(device), mask.to(device)


class _Runs(torch.autograd.Function):  # type: ignore[misc]
    """Runs that are computed again, one after another, for their gradient: the inner values of one are held."""

    @staticmethod
    def forward(ctx: Any, context: torch.Tensor, tower: PromptTower) -> torch.Tensor:
        ctx.tower = tower
        ctx.save_for_backward(context)
        return torch.cat([make(context) for _, make in tower.runs()])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        context = ctx.saved_tensors[0].detach().requires_grad_()
        total = torch.zeros_like(context)
        with torch.enable_grad():
            for part, make in ctx.tower.runs():
                total += torch.autograd.grad(make(context), context, gradient[part])[0]
        return total, None


def encode_names(names: Sequence[str], context: Vectors, encoder: Encoder) -> Vectors:
    """Vectors of class names behind a learned context.

    Args:
        names: K names.
        context: (n, width) float32, as ``outclass tune`` learned it.
        encoder: the encoder it was learned for.

    Returns:
        (K, d) float32, unit rows.

    Raises:
        UsageError: no torch encoder, or a name that does not fit.
        MismatchError: the text tower takes vectors of another length.
    """
    tower = PromptTower(encoder, names, len(context))
    if context.shape[1] != tower.width:
        raise MismatchError(
            f"the learned context has vectors of length {context.shape[1]}, but the text tower of "
            f"{encoder.info.name!r} takes {tower.width}; use the encoder it was learned for"
        )
    with torch.no_grad():
        return np.asarray(tower(torch.from_numpy(context).to(tower.table.weight.device)).cpu().numpy())


def word_context(words: str, encoder: Encoder) -> Vectors:
    """(n, width) float32: the token vectors of words, such as "a photo of a", as the start of a context.

    Raises:
        UsageError: no torch encoder, or no words.
        EncoderError: a text tower that cannot be used so.
    """
    # Both rows are padded alike; they differ first where the words end.
    ids, _ = torch_encoder(encoder).tokenize([words, f"{words} {PLACE}"])
    start, table = _start(encoder), token_table(encoder)
    end = _first_difference(ids)
    if not words.strip() or end <= start:
        raise UsageError(f"expected words to start the context from, such as 'a photo of a', got {words!r}")
    return np.asarray(table.weight.detach()[ids[0, start:end].to(table.weight.device)].cpu().numpy())


def torch_encoder(encoder: Encoder) -> TorchEncoder:
    """The same encoder, known to run on torch.

    Raises:
        UsageError: it does not; the message names one that does.
    """
    if not isinstance(encoder, TorchEncoder):
        raise UsageError(
            f"a learned context stands in place of words, which the text tower of {encoder.info.name!r} does not take; "
            "use a torch encoder: --encoder openai/clip-vit-base-patch32, or the folder of a checkpoint"
        )
    return encoder


def token_table(encoder: Encoder) -> Any:
    """The text tower's table of token vectors, a ``torch.nn.Embedding``.

    Raises:
        EncoderError: none was found.
    """
    for name, part in torch_encoder(encoder).text.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in EMBEDDINGS:
            return part
    raise EncoderError(
        f"the text tower of {encoder.info.name!r} has no table of tokens that outclass knows ({', '.join(EMBEDDINGS)}),"
        " so no context can be learned for it; use a CLIP, SigLIP, Chinese-CLIP, AltCLIP or MetaCLIP 2"
    )


def _start(encoder: Encoder) -> int:
    """How many tokens come before the first word: 1 for CLIP, 0 for SigLIP."""
    return _first_difference(torch_encoder(encoder).tokenize(["", PLACE])[0])


def _first_difference(ids: torch.Tensor) -> int:
    """(2, L) -> where the rows first differ; L where they do not."""
    differ = torch.nonzero(ids[0] != ids[1])
    return int(differ[0]) if len(differ) else ids.shape[1]
