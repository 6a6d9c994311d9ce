"""Measure the bundled encoder: ``python -m tools.lite.evaluate [--work build/lite]``.

Reads ``src/outclass/encoders/lite_model`` through onnxruntime (no torch). Where WORK/fp32 holds the fp32 export,
its figures and the differences follow.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.lite.data import list_photos, pixel_batches, shared_root
from tools.lite.measures import accuracy, auroc, max_logit, mcm, negative_labels, recall
from tools.lite.sessions import open_session, run_images, run_texts

BUNDLE = Path(__file__).parents[2] / "src" / "outclass" / "encoders" / "lite_model"
PROMPT = "a photo of a {}"
FAR = ("textures_far", "scenes_far", "digits_far", "art_far")
EVERYDAY = ["dog", "cat", "car", "bird", "food", "person", "landscape", "document", "flower", "fruit"]
EVERYDAY += ["building", "furniture"]
# Words of the pool that competes with the classes in the negative-label figure: every 10th of MiniLM's own.
OTHER_WORDS = 2000

BARS = {
    "imagenette_id10 accuracy": 0.90,
    "cat, dog, car accuracy": 0.95,
    "cat, dog, car | birds + objects AUROC": 0.92,
    "imagenette_id10 | far, mean AUROC": 0.94,
}


@dataclass(frozen=True)
class Figure:
    """One measured value; n says how many images (or ID + OOD images) it rests on."""

    value: float
    n: str


class Bench:
    """Vectors of a folder's encoder on demand, each set encoded once."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.image, self.text = open_session(folder / "image.onnx"), open_session(folder / "text.onnx")
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.sets: dict[str, tuple[np.ndarray, list[str]]] = {}

    def images(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Vectors (n, d) and labels of one set, such as ``dev/digits_far``."""
        if name not in self.sets:
            photos = list_photos(shared_root() / name)
            self.sets[name] = run_images(self.image, [photo.path for photo in photos]), [p.label for p in photos]
        return self.sets[name]

    def texts(self, texts: list[str]) -> np.ndarray:
        return run_texts(self.text, self.tokenizer, texts)

    def classes(self, names: list[str]) -> np.ndarray:
        return self.texts([PROMPT.format(name) for name in names])

    def other_words(self) -> np.ndarray:
        words = sorted(w for w in self.tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 2)
        chosen = [w for w in words[:: len(words) // OTHER_WORDS] if w not in EVERYDAY]
        return self.classes(chosen)


def measure(bench: Bench, scale: float) -> dict[str, Figure]:
    """All figures on ``dev`` and on the tuning sets of ``train``."""
    figures: dict[str, Figure] = {}

    def put(name: str, value: float, *counts: int) -> None:
        figures[name] = Figure(float(value), " + ".join(map(str, counts)))

    def own_names(name: str) -> tuple[np.ndarray, list[str], np.ndarray]:
        vectors, labels = bench.images(name)
        names = sorted(set(labels))
        texts = bench.classes(names)
        return vectors, labels, texts

    def zero_shot(name: str) -> None:
        vectors, labels, texts = own_names(name)
        put(f"{Path(name).name} accuracy", accuracy(vectors, texts, sorted(set(labels)), labels), len(vectors))

    others = bench.other_words()

    # 10 ImageNet classes against far and near strangers.
    zero_shot("dev/imagenette_id10")
    nette, _, texts = own_names("dev/imagenette_id10")
    strangers = {name: bench.images(f"dev/{name}")[0] for name in (*FAR, "imagenet1k_near200")}
    scores = {
        "AUROC": lambda vectors: max_logit(vectors, texts),
        "AUROC, MCM": lambda vectors: mcm(vectors, texts, scale),
        "AUROC, negative labels": lambda vectors: negative_labels(vectors, texts, others, scale),
    }
    for label, score in scores.items():
        own = score(nette)
        each = {name: auroc(own, score(vectors)) for name, vectors in strangers.items()}
        far = sum(len(strangers[name]) for name in FAR)
        put(f"imagenette_id10 | far, mean {label}", np.mean([each[name] for name in FAR]), len(nette), far)
        for name, value in each.items():
            put(f"imagenette_id10 | {name} {label}", value, len(nette), len(strangers[name]))

    # Three everyday classes, then one.
    pets, kinds = bench.images("dev/pets_vehicles/id")
    odd, _ = bench.images("dev/pets_vehicles/ood")
    names = ["cat", "dog", "car"]
    three = bench.classes(names)
    put("cat, dog, car accuracy", accuracy(pets, three, names, kinds), len(pets))
    title = "cat, dog, car | birds + objects"
    put(f"{title} AUROC", auroc(max_logit(pets, three), max_logit(odd, three)), len(pets), len(odd))
    put(f"{title} AUROC, MCM", auroc(mcm(pets, three, scale), mcm(odd, three, scale)), len(pets), len(odd))
    inside, outside = (negative_labels(v, three, others, scale) for v in (pets, odd))
    put(f"{title} AUROC, negative labels", auroc(inside, outside), len(pets), len(odd))
    right = ((inside <= -0.5).mean() + (outside > -0.5).mean()) / 2
    put(f"{title} balanced accuracy at one half, negative labels", right, len(pets), len(odd))
    cats, one = pets[[kind == "cat" for kind in kinds]], three[:1]
    put("cat alone | birds + objects AUROC", auroc(max_logit(cats, one), max_logit(odd, one)), len(cats), len(odd))

    # 100 classes at 64 pixels.
    zero_shot("dev/tinyimagenet_id100")
    tiny, _, texts100 = own_names("dev/tinyimagenet_id100")
    near, _ = bench.images("dev/tinyimagenet_near50")
    value = auroc(max_logit(tiny, texts100), max_logit(near, texts100))
    put("tinyimagenet_id100 | tinyimagenet_near50 AUROC", value, len(tiny), len(near))

    # Sets and words that no bar names.
    for name in ("dev/scenes_far", "dev/art_far", "train/tinyimagenet150", "train/pacs_photo", "train/flowers"):
        zero_shot(name)
    everyday = bench.classes(EVERYDAY)
    for name, truth in (("cats_dogs", None), ("cars", "car"), ("flowers", "flower")):
        vectors, labels = bench.images(f"train/{name}")
        expected = [truth or label for label in labels]
        put(f"{name} among 12 everyday words", accuracy(vectors, everyday, EVERYDAY, expected), len(vectors))
    for name, rest in (("pacs_photo", ("flowers", "cars")), ("flowers", ("pacs_photo", "cars"))):
        vectors, _, own_texts = own_names(f"train/{name}")
        far_sets = [strangers["textures_far"], strangers["scenes_far"], strangers["digits_far"]]
        far_sets += [bench.images(f"train/{item}")[0] for item in rest]
        values = [auroc(max_logit(vectors, own_texts), max_logit(item, own_texts)) for item in far_sets]
        title = f"{name} | textures, scenes, digits, {', '.join(rest)}, mean AUROC"
        put(title, np.mean(values), len(vectors), sum(map(len, far_sets)))

    # Captions find their photograph.
    root = shared_root() / "dev" / "flickr8k_captions"
    with open(root / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    paths = sorted({row["image"] for row in rows})
    photos = run_images(bench.image, [root / path for path in paths])
    captions = bench.texts([row["caption"] for row in rows])
    owner = np.array([paths.index(row["image"]) for row in rows])
    for k in (1, 10):
        put(f"flickr8k text to image, recall at {k}", recall(photos, captions, owner, k), len(rows))

    # Where cosines lie.
    put("cosine to the nearest class, imagenette_id10", -max_logit(nette, texts).mean(), len(nette))
    for name in ("imagenet1k_near200", *FAR):
        put(f"cosine to the nearest class, {name}", -max_logit(strangers[name], texts).mean(), len(strangers[name]))
    between = others @ others.T
    put("cosine between two words", (between.sum() - len(others)) / (len(others) * (len(others) - 1)), len(others))
    return figures


def batch_dependence(bench: Bench) -> dict[str, float]:
    """Largest change of a vector when 31 other images or texts share its run."""
    photos = [photo.path for name in FAR for photo in list_photos(shared_root() / "dev" / name)[::30]][:32]
    pixels = np.concatenate(list(pixel_batches(photos, 32)))
    together = bench.image.run(["vectors"], {"pixels": pixels})[0]
    alone = np.concatenate([bench.image.run(["vectors"], {"pixels": pixels[i : i + 1]})[0] for i in range(32)])
    ids = [bench.tokenizer.encode(" ".join(["a photo of a very old dog"] * (1 + i % 8))).ids for i in range(32)]
    longest = max(map(len, ids))
    padded = np.array([row + [0] * (longest - len(row)) for row in ids], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids], np.int64)
    mixed = bench.text.run(None, {"input_ids": padded, "attention_mask": mask})[0]
    single = [np.array([row], np.int64) for row in ids]
    apart = np.concatenate(
        [bench.text.run(None, {"input_ids": row, "attention_mask": np.ones_like(row)})[0] for row in single]
    )
    return {"images": float(np.abs(together - alone).max()), "texts": float(np.abs(mixed - apart).max())}


def speeds(folder: Path, tokenizer: Path) -> dict[str, float]:
    """Seconds to open both sessions; images/s and texts/s with one and two threads, medians."""
    start = time.perf_counter()
    bench = Bench(folder, tokenizer)
    result = {"open both sessions, s": time.perf_counter() - start}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 260, 260, 3), dtype=np.uint8)
    ids = np.array([bench.tokenizer.encode("a photo of a dog").ids] * 64, np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for threads in (1, 2):
        image = partial(open_session(folder / "image.onnx", threads).run, ["vectors"], {"pixels": pixels})
        text = partial(open_session(folder / "text.onnx", threads).run, None, feeds)
        result[f"images/s, batch 8, threads {threads}"] = 8 / _median(image)
        result[f"texts/s, batch 64, threads {threads}"] = 64 / _median(text)
    return result


def _median(call: Callable[[], object], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=BUNDLE, help="the encoder to measure")
    parser.add_argument("--work", type=Path, default=Path("build/lite"), help="its fp32/ is compared, if it exists")
    options = parser.parse_args()
    scale = json.loads((options.folder / "card.json").read_text(encoding="utf-8"))["logit_scale"]
    tokenizer = options.folder / "tokenizer.json"
    bench = Bench(options.folder, tokenizer)
    shipped = measure(bench, scale)
    reference = options.work / "fp32"
    full = measure(Bench(reference, tokenizer), scale) if reference.is_dir() else {}
    print(f"{'figure':<72} {'int8':>7}" + (f" {'fp32':>7} {'int8-fp32':>10}" if full else "") + "  n")
    for name, figure in shipped.items():
        line = f"{name:<72} {figure.value:7.4f}"
        if full:
            line += f" {full[name].value:7.4f} {figure.value - full[name].value:+10.4f}"
        print(f"{line}  {figure.n}")
    print("\nbars")
    for name, bar in BARS.items():
        value = shipped[name].value
        print(f"  {'met   ' if value >= bar else 'MISSED'} {name}: {value:.4f}, bar {bar:.2f}")
        if full:
            loss = full[name].value - value
            print(f"  {'met   ' if loss <= 0.005 else 'MISSED'} {name}: int8 loses {100 * loss:.2f} points, bar 0.50")
    for kind, change in batch_dependence(bench).items():
        print(f"  {'met   ' if change <= 1e-5 else 'MISSED'} batch dependence, {kind}: {change:.1e}, bar 1e-05")
    print("\nspeed on this machine")
    for name, value in speeds(options.folder, tokenizer).items():
        print(f"  {name}: {value:.3g}")
    sizes = {path.name: path.stat().st_size for path in sorted(options.folder.iterdir())}
    print(
        f"\nsizes, MB: {', '.join(f'{n} {s / 1e6:.2f}' for n, s in sizes.items())}; all {sum(sizes.values()) / 1e6:.2f}"
    )


if __name__ == "__main__":
    main()
