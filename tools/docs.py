"""Writes the generated tables of docs/ from the code: python tools/docs.py

A test runs it with --check, so that no table is ever typed or out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from outclass import all_detectors
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
    for name, tables in {"detectors.md": {"detectors": detector_table()}, "lite.md": lite_tables()}.items():
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
