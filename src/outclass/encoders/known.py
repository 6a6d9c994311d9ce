"""Encoders that are known by name, for ``outclass encoders``; any other Hugging Face CLIP id works too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownEncoder:
    """One line of the table.

    Attributes:
        name: what users type.
        title: what it is.
        download: size of its download, MB, from the number of its parameters where the files were not seen; 0 = none.
        languages: of class names.
        licence: of its weights, as their page says.
        extra: pip extra that runs it; empty = the core.
        speed: class of the image tower on a CPU: ``quick`` (as ``lite``), ``medium`` (ViT-B/32), ``slow`` (ViT-B/16 at
            224 pixels, four times the work), ``very slow`` (ViT-L/14 and larger, eighteen times); empty = see its card.
        repository: of an open_clip model: where open_clip's own table says that its weights are on the hub.
    """

    name: str
    title: str
    download: int
    languages: str
    licence: str
    extra: str = ""
    speed: str = ""
    repository: str = ""


KNOWN = (
    KnownEncoder("lite", "bundled: small and quick, everyday nouns", 0, "en", "Apache-2.0", "", "quick"),
    KnownEncoder("openai/clip-vit-base-patch32", "CLIP ViT-B/32", 605, "en", "MIT", "torch", "medium"),
    KnownEncoder("openai/clip-vit-base-patch16", "CLIP ViT-B/16", 599, "en", "MIT", "torch", "slow"),
    KnownEncoder("openai/clip-vit-large-patch14", "CLIP ViT-L/14", 1710, "en", "MIT", "torch", "very slow"),
    KnownEncoder("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "LAION ViT-B/32", 605, "en", "MIT", "torch", "medium"),
    KnownEncoder(
        "openclip:ViT-B-16/dfn2b",
        "DFN ViT-B/16",
        600,
        "en",
        "Apple AMLR: research only",
        "openclip",
        "slow",
        repository="apple/DFN2B-CLIP-ViT-B-16",
    ),
    KnownEncoder(
        "facebook/metaclip-2-worldwide-b16", "MetaCLIP 2 ViT-B/16", 2400, "many", "CC-BY-NC-4.0", "torch", "slow"
    ),
    KnownEncoder("google/siglip-base-patch16-224", "SigLIP ViT-B/16", 810, "en", "Apache-2.0", "torch", "slow"),
    KnownEncoder("google/siglip2-base-patch16-224", "SigLIP 2 ViT-B/16", 1500, "many", "Apache-2.0", "torch", "slow"),
    KnownEncoder(
        "OFA-Sys/chinese-clip-vit-base-patch16", "Chinese-CLIP ViT-B/16", 750, "zh, en", "see its page", "torch", "slow"
    ),
    KnownEncoder("BAAI/AltCLIP", "AltCLIP ViT-L/14", 3460, "en, zh", "CreativeML OpenRAIL-M", "torch", "very slow"),
    KnownEncoder("onnx:DIR", "a folder with an exported encoder", 0, "see its card", "see its card"),
    KnownEncoder("toy", "a fake that knows eight colours, for tests", 0, "en", "Apache-2.0", "", "quick"),
)
