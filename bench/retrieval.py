"""How well words find images. One JSON line a figure, then the table of docs/index.md.

python bench/retrieval.py                        # the bundled encoder on the development images; a minute
python bench/retrieval.py --encoder NAME
python bench/retrieval.py --smoke                # a few images: does it run?

recall@k      share of the captions of flickr8k_captions whose own photograph is among the k nearest of all
              photographs; the interval is over photographs, since the captions of one go together
precision@10  share of the ten nearest to a class's name that lie in its folder, mean over classes
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from outclass import load_encoder
from outclass.index import Index, build

DEV = Path(__file__).parents[2] / "shared" / "data" / "dev"
KS = (1, 5, 10)
DRAWS = 2000
# Folders whose images are searched, and the folders whose names are the queries.
NAMED = {"imagenette_id10": "*", "pets_vehicles": "*/*"}
QUERIES = {"pets_vehicles": ("cat", "dog", "car", "birds")}


def say(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def recall(encoder: Any, folder: Path, smoke: bool) -> list[str]:
    """Captions -> photographs."""
    with open(DEV / "flickr8k_captions" / "captions.csv", encoding="utf-8", newline="") as file:
        rows = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    photos = sorted({image for image, _ in rows})[: 20 if smoke else None]
    rows = [row for row in rows if row[0] in set(photos)]
    build([(name, DEV / "flickr8k_captions" / name) for name in photos], folder / "captions.lance", encoder)
    found = Index(folder / "captions.lance").top(encoder.encode_texts([caption for _, caption in rows]), max(KS))
    place = np.array([ids.index(own) if own in ids else max(KS) for ids, (own, _) in zip(found, rows, strict=True)])
    owner = np.array([photos.index(own) for own, _ in rows])
    captions, lines = np.bincount(owner), []
    for k in KS:
        hits = np.bincount(owner, place < k)
        drawn = np.random.default_rng(0).integers(0, len(photos), (DRAWS, len(photos)))
        low, high = np.quantile(hits[drawn].sum(1) / captions[drawn].sum(1), (0.025, 0.975))
        mean, chance = float((place < k).mean()), k / len(photos)
        about = {"captions": len(rows), "images": len(photos), "low": float(low), "high": float(high), "chance": chance}
        say(f"recall@{k}", set="flickr8k_captions", value=mean, **about, bar="none: as measured")
        lines.append(
            f"| recall@{k}, a caption finds its photograph | `flickr8k_captions`, {len(rows):,} captions, "
            f"{len(photos)} photographs | {mean:.3f} [{low:.3f}, {high:.3f}]; by chance {chance:.3f} |"
        )
    return lines


def precision(encoder: Any, folder: Path, name: str, smoke: bool) -> str:
    """Class names -> images."""
    classes = [one for one in sorted((DEV / name).glob(NAMED[name])) if one.is_dir()]
    classes = [one for one in classes if one.name in QUERIES.get(name, (one.name,))]
    files = sorted(file for file in (DEV / name).rglob("*") if file.is_file())[:: 10 if smoke else 1]
    build([(file.relative_to(DEV / name).as_posix(), file) for file in files], folder / f"{name}.lance", encoder)
    words = [one.name.replace("_", " ") for one in classes]
    found = Index(folder / f"{name}.lance").top(encoder.encode_texts(words), 10)
    shares = [
        float(np.mean([one.name in id_.split("/") for id_ in ids])) for ids, one in zip(found, classes, strict=True)
    ]
    mean = float(np.mean(shares))
    say("precision@10", set=name, value=mean, images=len(files), by_class=dict(zip(words, shares, strict=True)),
        bar=">= 0.9")  # fmt: skip
    return (
        f"| precision@10, a class's name finds its images | `{name}`, {len(words)} names, {len(files)} images | "
        f"{mean:.3f} (worst name {min(shares):.1f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few images: does it run?")
    parser.add_argument("--encoder", default="lite")
    options = parser.parse_args()
    if not DEV.is_dir():
        sys.exit(f"no development images in {DEV}")
    encoder = load_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        lines = [precision(encoder, Path(folder), name, options.smoke) for name in NAMED]
        lines += recall(encoder, Path(folder), options.smoke)
    print("\n".join(["| figure | images | " + encoder.info.name + " |", "|---|---|---|", *lines]))


if __name__ == "__main__":
    main()
