"""Images that were found -> one HTML page of thumbnails that stands alone, runs no script and asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outclass.report.page import Find, data_uri, template, thumbnail


def contact_sheet(title: str, hits: Sequence[Any], find: Find | None, about: dict[str, str]) -> str:
    """The page.

    Args:
        title: what was searched for.
        hits: in the order they are shown, each with ``id``, ``similarity``, ``width``, ``height`` and ``verdict``.
        find: id -> what the image can be read from again; None = a page without pictures.
        about: name -> value, how the hits were found.

    Returns:
        HTML text that encodes as UTF-8 whatever the file names hold.
    """
    return template("contact.html.j2").render(
        title=title, hits=hits, about=about, picture=(lambda id_: data_uri(thumbnail(find, id_))) if find else None
    )
