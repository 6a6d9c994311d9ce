"""Tiny random checkpoints, made and saved with `transformers`: a real folder to load, no download."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BertTokenizerFast,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
)

WORDS = ["a photo of a cat", "a photo of a dog", "a red car", "a bird on a tree", "one two three four five six"]
SIZE = 32
CONTEXT = 24
LOUD = 5  # random weights are made so much larger: at their own 0.02 all inputs give nearly one vector

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_TOWER, "image_size": SIZE, "patch_size": 8}


def save_clip(folder: Path, seed: int = 0, **processor: object) -> Path:
    """A CLIP of 2 layers, 32 wide, 32 px, context 24; ``processor`` overrides its image settings."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = pre_tokenizers.ByteLevel.alphabet()
    pieces = [*sorted(letters), *sorted(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in {word: None for line in WORDS for word in line.split()}:  # every word becomes one token
        whole, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for piece in rest:
            merges.append((whole, piece))
            whole += piece
            pieces.append(whole)
    pieces += [start, end]  # the end has the highest id, as in OpenAI's
    vocab = {piece: row for row, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=CONTEXT)
    text = {"vocab_size": len(vocab), "max_position_embeddings": CONTEXT, "bos_token_id": vocab[start]}
    ends = {"eos_token_id": vocab[end], "pad_token_id": vocab[end]}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config={**_TOWER, **text, **ends}, vision_config=_VISION, projection_dim=24)
    _loud(CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return _save_processor(folder, "CLIPImageProcessor", {**crop, **processor})


def save_metaclip2(folder: Path, seed: int = 0, **processor: object) -> Path:
    """A MetaCLIP 2: CLIP's towers, a tokenizer of many languages whose end is its id 2."""
    tokenizer = _words_tokenizer(masked=True)
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "projection_dim": 24}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    vision = {**_VISION, "projection_dim": 24}
    config = MetaClip2Config(text_config={**_TOWER, **text, **ends}, vision_config=vision, projection_dim=24)
    _loud(MetaClip2Model(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return _save_processor(folder, "CLIPImageProcessor", {**crop, **processor})


def save_altclip(folder: Path, seed: int = 0, **processor: object) -> Path:
    """An AltCLIP: RoBERTa's text tower, which counts positions from behind the padding's id."""
    tokenizer = _words_tokenizer(masked=True)
    tokenizer.model_max_length = 10**9  # as some checkpoints have it: the model's own positions are the limit
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT + 1, "project_dim": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    config = AltCLIPConfig(text_config={**_TOWER, **text, **ends}, vision_config=_VISION, projection_dim=24)
    _loud(AltCLIPModel(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return _save_processor(folder, "CLIPImageProcessor", {**crop, **processor})


def save_naflex(folder: Path) -> Path:
    """A SigLIP 2 of variable resolution."""
    tokenizer = _words_tokenizer()
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    vision = {**_TOWER, "patch_size": 8, "num_patches": 16}
    Siglip2Model(Siglip2Config(text_config={**_TOWER, **text}, vision_config=vision)).save_pretrained(folder)
    return _save_processor(folder, "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16})


def save_siglip2(folder: Path, seed: int = 0, **processor: object) -> Path:
    """A SigLIP 2 of fixed resolution: SigLIP with a tokenizer that forgets to lower-case, as the published ones do."""
    return _save_siglip(folder, _words_tokenizer(lower=False), seed, **processor)


def save_siglip(folder: Path, seed: int = 0, **processor: object) -> Path:
    """A SigLIP with a bias, no attention mask, and texts padded to 16; its tokenizer is a slow one, sentencepiece."""
    folder.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    lines = [*WORDS * 9, *string.ascii_lowercase * 3, *string.digits * 3]
    how = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "normalization_rule_name": "nmt_nfkc"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, vocab_size=56, hard_vocab_limit=False, minloglevel=2, **how
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    return _save_siglip(
        folder,
        SiglipTokenizer(
            str(folder / "spiece.model"),
            model_max_length=16,
            model_input_names=["input_ids"],  # as the published ones
        ),
        seed,
        **processor,
    )


def _save_siglip(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int, **processor: object) -> Path:
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    model = SiglipModel(SiglipConfig(text_config={**_TOWER, **text}, vision_config=_VISION))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.5)
    _loud(model).save_pretrained(folder)
    square = {"size": {"height": SIZE, "width": SIZE}}
    return _save_processor(folder, "SiglipImageProcessor", {**square, **processor})


def save_chinese_clip(folder: Path, seed: int = 0) -> Path:
    """A Chinese-CLIP: a BERT text tower, images squashed to a square."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一张猫狗红色汽车的照片"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    BertTokenizerFast(vocab={word: row for row, word in enumerate(vocab)}, model_max_length=CONTEXT).save_pretrained(
        folder
    )
    text = {"vocab_size": len(vocab), "max_position_embeddings": CONTEXT}
    torch.manual_seed(seed)
    config = ChineseCLIPConfig(text_config={**_TOWER, **text}, vision_config=_VISION, projection_dim=24)
    _loud(ChineseCLIPModel(config)).save_pretrained(folder)
    square = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False}
    return _save_processor(folder, "ChineseCLIPImageProcessor", square)


def _loud(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim >= 2 and "embedding" not in name:
                weights.mul_(LOUD)
    return model


def _words_tokenizer(lower: bool = True, masked: bool = False) -> PreTrainedTokenizerFast:
    words = sorted({word for line in WORDS for word in line.split()})
    vocab = {word: row for row, word in enumerate(["<pad>", "<unk>", "</s>", *words])}
    whole = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    if lower:
        whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=CONTEXT if masked else 16,
        model_input_names=["input_ids", "attention_mask"] if masked else ["input_ids"],
    )


def _save_processor(folder: Path, kind: str, settings: dict[str, object]) -> Path:
    data = {"image_processor_type": kind, "resample": 3, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
