"""Encoders that are known by name, for ``outclass encoders``; any other Hugging Face CLIP id works too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownEncoder:
    """One line of the table.

    Attributes:
        name: what users type.
        title: what it is.
        download: size of its download, MB; 0 = none.
        languages: of class names.
        licence: of its weights.
        extra: pip extra that runs it; empty = the core.
    """

    name: str
    title: str
    download: int
    languages: str
    licence: str
    extra: str = ""


KNOWN = (
    KnownEncoder("lite", "bundled: small and quick, everyday nouns", 0, "en", "Apache-2.0"),
    KnownEncoder("openai/clip-vit-base-patch32", "CLIP ViT-B/32", 605, "en", "MIT", "torch"),
    KnownEncoder("openai/clip-vit-base-patch16", "CLIP ViT-B/16", 599, "en", "MIT", "torch"),
    KnownEncoder("openai/clip-vit-large-patch14", "CLIP ViT-L/14", 1710, "en", "MIT", "torch"),
    KnownEncoder("onnx:DIR", "a folder with an exported encoder", 0, "see its card", "see its card"),
    KnownEncoder("toy", "a fake that knows eight colours, for tests", 0, "en", "Apache-2.0"),
)
