"""``outclass eval`` of scans: figures from verdicts that are there, without an image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outclass import atomic
from outclass.errors import UsageError

FIGURES = {  # with their decimals: areas as shares, FPR95 in %, as for images
    "auroc": ("AUROC", "{:.3f}", 1),
    "fpr95_id_positive": ("FPR95 (ID +)", "{:.1f}", 100),
    "fpr95_ood_positive": ("FPR95 (OOD +)", "{:.1f}", 100),
    "aupr_in": ("AUPR-in", "{:.3f}", 1),
    "aupr_out": ("AUPR-out", "{:.3f}", 1),
}


def measure_scans(
    id: str,
    ood: Sequence[str],
    out: Path | None,
    quiet: bool,
    given: dict[str, Any],
    about: Callable[[], dict[str, Any]],
) -> None:
    """Print and write the figures of scans of ID and OOD images that one guard judged.

    Args:
        id: folder of the scan of ID images.
        ood: folders of the scans of OOD images.
        out: for eval.csv and eval.json; None = print only.
        quiet: print nothing.
        given: options that are for images -> what was given, to be refused.
        about: says at the end what ran, for eval.json.

    Raises:
        UsageError: such an option was given, or a folder holds no scan.
    """
    from outclass.benchmark.table import COLUMNS, Row, to_csv
    from outclass.cli.show import say
    from outclass.cli.tables import table
    from outclass.decide.metrics import Metrics
    from outclass.shards import is_scan, measure_folders

    if asked := [name for name, value in given.items() if value]:
        raise UsageError(
            f"{id!r} holds the verdicts of a scan, and {', '.join(asked)} is for images: leave it out, or give --id "
            "images"
        )
    if images := [folder for folder in ood if not is_scan(folder)]:
        raise UsageError(
            f"--id is the folder of a scan, so --ood must be such, too, and {images[0]!r} is none: scan these images "
            "with the same guard, outclass scan IMAGES -o DIR, or give --id images"
        )
    found = measure_folders(id, ood)
    names = [os.path.basename(os.path.abspath(folder)) for folder in found.rows]
    names = names if len(set(names)) == len(names) else list(found.rows)
    empty = dict.fromkeys(set(COLUMNS[2:]) - set(Metrics.__slots__))
    rows = [Row.of(found.detector, name, one, **empty) for name, one in zip(names, found.rows.values(), strict=True)]
    if not quiet:
        lines = [[row.ood_set, f"{row.n_id:,}", f"{row.n_ood:,}"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            line += [form.format(times * getattr(row, name)) for name, (_, form, times) in FIGURES.items()]
        table(["OOD images", "n ID", "n OOD", *(title for title, _, _ in FIGURES.values())], lines)
        say("AUROC and AUPR: higher is better; FPR95 in %, ID or OOD positive: lower is better; of all images at once")
        say("ood_score as in the verdicts, higher = more OOD")
        if found.failed:
            say(f"{found.failed:,} images could not be read and have no score", style="yellow")
    if out is not None:
        said = {**about(), "id": id, "ood": list(ood), "failed": found.failed, "rows": [row.to_dict() for row in rows]}
        texts = {"eval.csv": to_csv(rows), "eval.json": json.dumps(said, indent=2, ensure_ascii=False) + "\n"}
        paths = atomic.write_texts(out, texts)
        if not quiet:
            say(f"wrote {' and '.join(map(str, paths))}")
