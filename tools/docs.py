"""Writes the generated tables of docs/ from the code: python tools/docs.py

A test runs it with --check, so that no table is ever typed or out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from outclass import all_detectors

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
    path = DOCS / "detectors.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old, "detectors", detector_table())
    if check and new != old:
        sys.exit(f"{path} is out of date: python tools/docs.py")
    if not check:
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
