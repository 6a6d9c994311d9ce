"""Running ONNX files: all that evaluate needs (no torch here)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from tools.lite.data import pixel_batches

MAX_TOKENS = 64  # captions rarely pass 40


def open_session(path: Path, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_images(
    session: onnxruntime.InferenceSession, images: Iterable[Path | Image.Image], output: str = "vectors"
) -> np.ndarray:
    """n images -> (n, d) float32; the feature map (output ``map``) is averaged over its places: (n, 1280)."""
    rows = [session.run([output], {"pixels": batch})[0] for batch in pixel_batches(images)]
    return np.concatenate([row.mean((2, 3)) if row.ndim == 4 else row for row in rows])


def run_texts(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """n texts -> (n, d) float32; texts of one length share a run, so nothing is padded."""
    ids = [tokenizer.encode(text).ids[:MAX_TOKENS] for text in texts]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    parts, start = [], 0
    while start < len(order):
        stop = start
        while stop < min(len(order), start + 128) and len(ids[order[stop]]) == len(ids[order[start]]):
            stop += 1
        batch = np.array([ids[row] for row in order[start:stop]], np.int64)
        parts.append(session.run(None, {"input_ids": batch, "attention_mask": np.ones_like(batch)})[0])
        start = stop
    rows = np.concatenate(parts)
    result = np.empty_like(rows)
    result[order] = rows
    return result
