"""Writes the generated tables of docs/ from the code: python tools/docs.py

A test runs it with --check, so that no table is ever typed or out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from outclass import all_detectors
from outclass.decide.calibration import Calibration, images_needed
from outclass.encoders.known import KNOWN
from outclass.encoders.lite import FOLDER

DOCS = Path(__file__).parent.parent / "docs"


def detector_table() -> str:
    """The registry as a Markdown table."""
    rows = ["| name | what | needs | classes from | formula | published in |", "|---|---|---|---|---|---|"]
    for name, kind in all_detectors().items():
        info = kind.info
        needs = ", ".join(sorted(info.needs)) or "class names"
        cells = (f"`{name}`", info.title, needs, str(info.min_classes), info.formula, f"{info.paper}; {info.equation}")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def encoder_table() -> str:
    """The known encoders as a Markdown table."""
    rows = ["| name | what | speed on a CPU | download | languages | licence |", "|---|---|---|---|---|---|"]
    for one in KNOWN:
        size = f"{one.download:,} MB" if one.download else "none"
        cells = (f"`{one.name}`", one.title, one.speed or "see its card", size, one.languages, one.licence)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def lite_tables() -> dict[str, str]:
    """What the bundled encoder's card says: measurements and data."""
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    measured = ["| what | value | n |", "|---|---|---|"]
    for name, figure in card["measured"].items():
        text = name.replace("|", "against")
        value = (
            f"{figure['value']:.3f}" if figure["value"] >= 0.001 or not figure["value"] else f"{figure['value']:.0e}"
        )
        measured.append(f"| {text} | {value} | {figure['n']} |")
    data = ["| data | how much | licence | shaped |", "|---|---|---|---|"]
    for one in card["data"]:
        amount = f"{one['images']} images" if "images" in one else f"{one['vectors']} vectors"
        data.append(f"| {one['set']} | {amount} | {one['licence']} | {one['use']} |")
    sources = ["| package | what | licence |", "|---|---|---|"]
    for one in card["sources"]:
        sources.append(f"| {one['package']} {one['version']} | {one['what']} | {one['licence']} |")
    return {"measured": "\n".join(measured), "data": "\n".join(data), "sources": "\n".join(sources)}


def calibration_tables() -> dict[str, str]:
    """How many images a false-alarm rate takes, and how near one calibration comes to it."""
    needed = ["| false-alarm rate | on average | `--confidence 0.95` | `--confidence 0.99` |", "|---|---|---|---|"]
    for rate in (0.1, 0.05, 0.01, 0.001):
        counts = [f"{images_needed(rate, confidence):,}" for confidence in (None, 0.95, 0.99)]
        needed.append(f"| {100 * rate:g} % | {' | '.join(counts)} |")
    spread = ["| calibration images | actual rate of 95 % of guards, 5 % asked for |", "|---|---|"]
    for n in (19, 50, 100, 200, 500, 1000, 5000):
        low, high = Calibration.build(np.arange(n), 0.05).interval()
        spread.append(f"| {n:,} | {100 * low:.1f} % to {100 * high:.1f} % |")
    return {"needed": "\n".join(needed), "spread": "\n".join(spread)}


def filled(page: str, name: str, table: str) -> str:
    """The page with the part between the two markers called ``name`` replaced."""
    pattern = rf"(<!-- {name}: made by tools/docs.py -->\n).*?(\n<!-- /{name} -->)"
    text, found = re.subn(pattern, lambda match: match[1] + table + "\n" + match[2], page, flags=re.DOTALL)
    if found != 1:
        sys.exit(f"expected the markers of {name!r} once, found them {found} times")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is out of date")
    check = parser.parse_args().check
    pages = {
        "detectors.md": {"detectors": detector_table()},
        "encoders.md": {"encoders": encoder_table()},
        "lite.md": lite_tables(),
        "thresholds.md": calibration_tables(),
    }
    for name, tables in pages.items():
        path = DOCS / name
        new = old = path.read_text(encoding="utf-8")
        for table, rows in tables.items():
            new = filled(new, table, rows)
        if check and new != old:
            sys.exit(f"{path} is out of date: python tools/docs.py")
        if not check:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
