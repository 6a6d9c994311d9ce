"""Groups in the unknown: what an index holds beyond the known classes, with names that could become classes."""

from outclass.discover.discovery import Discovery, Group, discover
from outclass.discover.naming import Name

__all__ = ["Discovery", "Group", "Name", "discover"]
