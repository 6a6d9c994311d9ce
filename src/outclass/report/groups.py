"""Groups that were found in the unknown -> ``groups.csv`` and one HTML page that stands alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outclass import atomic
from outclass.report.page import Find, data_uri, template, thumbnail

GROUPS_CSV, DISCOVER_HTML = "groups.csv", "discover.html"
COLUMNS = ("id", "group", "name", "similarity", "ood_score", "near_duplicate_of")


def write_groups(
    folder: str | os.PathLike[str],
    found: Any,
    find: Find | None,
    command: Callable[[str], str],
    about: dict[str, str],
) -> list[Path]:
    """Write both files; each is whole, or not there.

    ``groups.csv`` has a row for every OOD image: its id, the number of its group, the first name that was proposed
    for it, the cosine to the group's centre (larger = more like the group), ``ood_score`` (higher = more OOD), and the
    id of the image that it is nearly the same as. Images of no group come last, with these fields empty.

    Args:
        folder: made where missing.
        found: a ``Discovery``.
        find: id -> what the image can be read from again; None = a page without pictures.
        command: word -> the command that adds it as a class.
        about: name -> value, how it was made.

    Returns:
        Their paths.

    Raises:
        UsageError: the folder cannot be written to.
    """
    table, page = Path(folder) / GROUPS_CSV, Path(folder) / DISCOVER_HTML
    with atomic.write(table) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for group in found.groups:
            name, alike = group.names[0].word if group.names else "", dict(group.alike)
            for id_, similarity, score in zip(group.ids, group.similarity, group.ood_scores, strict=True):
                rows.writerow((id_, group.number, name, f"{similarity:.9g}", f"{score:.9g}", alike.get(id_, "")))
        rows.writerows(
            (id_, "", "", "", f"{score:.9g}", "") for id_, score in zip(found.apart, found.apart_scores, strict=True)
        )
    with atomic.write(page) as file:
        file.write(discovery_page(found, find, command, about))
    return [table, page]


def discovery_page(found: Any, find: Find | None, command: Callable[[str], str], about: dict[str, str]) -> str:
    """The page; arguments as for ``write_groups``.

    Returns:
        HTML text that encodes as UTF-8 whatever the file names hold.
    """
    return template("discover.html.j2").render(
        found=found,
        command=command,
        about=about,
        picture=(lambda id_: data_uri(thumbnail(find, id_))) if find else None,
    )
