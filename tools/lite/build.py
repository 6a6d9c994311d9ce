"""Make the bundled encoder: ``python -m tools.lite.build [--work build/lite] [--out FOLDER]``.

Stages leave their files in the work folder and are skipped when these exist: fp32 backbones, int8 image backbone,
features, sentence vectors. Heads are always trained again. Seeded: the same packages give the same weights.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tools.lite import features, sentences
from tools.lite.card import FILES, write_card
from tools.lite.data import SHIPPED_SETS, coco_photos, list_photos, shared_root
from tools.lite.draw import MAKERS
from tools.lite.evaluate import BUNDLE, Bench, batch_dependence, measure
from tools.lite.export import export_image, export_text
from tools.lite.towers import (
    ImageBackbone,
    TextBackbone,
    export_image_backbone,
    export_text_backbone,
    quantise_image_backbone,
    tokenizer,
)
from tools.lite.train import Settings, train

CALIBRATION = 128  # photographs that set the int8 ranges of the image tower


def calibration_photos(seed: int) -> list[Path]:
    """Licensed photographs only: COCO's, then random ones of the training sets."""
    coco = coco_photos()
    rest = [photo.path for name in SHIPPED_SETS for photo in list_photos(shared_root() / "train" / name)]
    return coco + random.Random(seed).sample(rest, CALIBRATION - len(coco))


def data_sheet() -> list[dict[str, Any]]:
    """What shaped the weights, for the card."""
    terms = {"caltech101": "CC BY 4.0", "grocery": "MIT", "trash": "MIT"}
    uses = "heads and int8 ranges"
    sheet: list[dict[str, Any]] = []
    for name in SHIPPED_SETS:
        photos = list_photos(shared_root() / "train" / name)
        classes = len(Counter(photo.label for photo in photos))
        sheet.append({"set": name, "images": len(photos), "classes": classes, "licence": terms[name], "use": uses})
    coco = {"set": "coco_captions", "images": len(coco_photos()), "licence": "CC BY and CC BY-SA photographs only"}
    sheet.append({**coco, "use": "int8 ranges"})
    drawn = {"set": "drawn by tools/lite/draw.py", "images": sum(MAKERS.values()), "licence": "own, Apache-2.0"}
    sheet.append({**drawn, "use": "heads"})
    sheet.append(
        {
            "set": "feature vectors invented from the classifier's weights",
            "vectors": Settings().invented,
            "licence": "Apache-2.0, as the classifier",
            "use": "heads",
        }
    )
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/lite"), help="cache of the stages")
    parser.add_argument("--out", type=Path, default=BUNDLE, help="where the four files go")
    options = parser.parse_args()
    settings, work, start = Settings(), options.work, time.perf_counter()
    torch.manual_seed(settings.seed)
    (work / "fp32").mkdir(parents=True, exist_ok=True)

    def say(what: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {what}", flush=True)

    say("backbones")
    image_fp32, image_int8 = work / "image_fp32.onnx", work / "image_int8.onnx"
    text_fp32 = work / "text_fp32.onnx"
    backbone = ImageBackbone()
    if not text_fp32.exists():
        export_image_backbone(backbone, image_fp32)
        export_text_backbone(TextBackbone(), text_fp32)
    if not image_int8.exists():
        say(f"int8 ranges from {CALIBRATION} photographs")
        quantise_image_backbone(image_fp32, image_int8, calibration_photos(settings.seed))
    say("features of photographs and drawn images")
    examples = features.collect(image_int8, work / "examples.npz", settings.seed)
    say("sentence vectors")
    words = sentences.collect(text_fp32, examples, work / "sentences.npz", settings.seed)
    say(f"heads, from {len(examples.features)} features and {settings.invented} invented ones")
    head = train(examples, words, backbone.classifier(), settings)
    head.save(work / "head.npz")

    say("export")
    ready = work / "ready"
    ready.mkdir(exist_ok=True)
    export_image(image_int8, head, ready / FILES["image"], int8=True)
    export_text(text_fp32, head, ready / FILES["text"], int8=True)
    export_image(image_fp32, head, work / "fp32" / FILES["image"], int8=False)
    export_text(text_fp32, head, work / "fp32" / FILES["text"], int8=False)
    tokenizer().save(str(ready / FILES["tokenizer"]), pretty=False)

    say("figures for the card")
    bench = Bench(ready, ready / FILES["tokenizer"])
    figures = {name: {"value": round(f.value, 4), "n": f.n} for name, f in measure(bench, head.scale).items()}
    changes = {f"batch dependence, {kind}": {"value": v, "n": "32"} for kind, v in batch_dependence(bench).items()}
    write_card(ready, head, data_sheet(), {**figures, **changes})

    options.out.mkdir(parents=True, exist_ok=True)
    for name in (*FILES.values(), "card.json"):
        fresh = options.out / f".{name}"
        fresh.write_bytes((ready / name).read_bytes())
        fresh.replace(options.out / name)
    say(f"done: {options.out}, {sum(p.stat().st_size for p in options.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
