"""The bundled encoder: small, English, everyday nouns; no download. Its card says what made it and what it reaches."""

from __future__ import annotations

from pathlib import Path

from outclass.encoders.onnx import OnnxEncoder

FOLDER = Path(__file__).parent / "lite_model"


def load_lite(device: str = "auto", threads: int | None = None) -> OnnxEncoder:
    """Load the bundled encoder; see ``lite_model/card.json`` and docs/lite.md."""
    return OnnxEncoder(FOLDER, name="lite", device=device, threads=threads)
