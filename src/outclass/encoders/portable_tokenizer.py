"""Any encoder's tokenizer as a ``tokenizer.json`` of the package `tokenizers`, which runs without torch."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

from outclass.errors import EncoderError

if TYPE_CHECKING:
    from outclass.encoders.torch_towers import TorchEncoder

SPACE = "▁"  # sentencepiece's


def portable_tokenizer(encoder: TorchEncoder) -> tuple[Any, int]:
    """A copy of the encoder's tokenizer in the format of `tokenizers`, neither cutting nor padding; the padding's id.

    Raises:
        EncoderError: it is of a kind that has none.
    """
    from tokenizers import Tokenizer

    own: Any = getattr(encoder.tokenize, "tokenizer", None)  # open_clip's, which cleans texts before
    part: Any = getattr(own, "tokenizer", None) or getattr(encoder.tokenize, "_tokenizer", None)
    cleans = getattr(getattr(own, "clean_fn", None), "__name__", "_clean_whitespace")
    pad = getattr(part, "pad_token_id", None) or 0
    if cleans == "_clean_lower" and hasattr(own, "bpe_ranks") and own.reduction_fn is None:
        part, cleans, pad = _openai(own), "_clean_whitespace", 0
    fast = _siglip(part) if type(part).__name__ == "SiglipTokenizer" else getattr(part, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise EncoderError(
            f"the tokenizer of {encoder.info.name!r} ({type(part or own).__name__}) is a slow one, of Python alone, "
            "and an export needs one in the format of the package `tokenizers` (tokenizer.json); a checkpoint of the "
            "same model with such a file can be exported"
        )
    if cleans != "_clean_whitespace" or getattr(own, "strip_sep_token", False) or getattr(own, "tokenizer_mode", ""):
        raise EncoderError(
            f"open_clip prepares the texts of {encoder.info.name!r} in a way that tokenizer.json cannot say "
            f"({cleans}); export the same model's Hugging Face checkpoint, such as google/siglip-base-patch16-224"
        )
    tokenizer = Tokenizer.from_str(fast.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad


def _openai(simple: Any) -> Any:
    """open_clip's rewriting of OpenAI's tokenizer as the one of `transformers`: the same merges, other special names.

    It also mends broken Unicode and HTML entities, which no class name has.
    """
    from transformers import CLIPTokenizer

    names = dict(zip(("<start_of_text>", "<end_of_text>"), ("<|startoftext|>", "<|endoftext|>"), strict=True))
    vocab = {names.get(piece, piece): number for piece, number in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=list(simple.bpe_ranks))


def _siglip(slow: Any) -> Any:
    """SigLIP's tokenizer, which is sentencepiece behind some Python: lower case, no punctuation, single spaces."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, models, normalizers, processors

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(slow.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=False))
    marks = f"[{re.escape(string.punctuation)}]"
    steps = [
        normalizers.Prepend(SPACE),
        *([normalizers.Lowercase()] if slow.do_lower_case else []),
        normalizers.Replace(Regex(marks), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        *(
            [normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)]
            if model.normalizer_spec.precompiled_charsmap
            else []
        ),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace(" ", SPACE),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    end = slow.eos_token
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, slow.eos_token_id)]
    )
    return tokenizer
