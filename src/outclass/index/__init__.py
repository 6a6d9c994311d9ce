"""An index: images encoded once, kept in a Lance table, scored and searched as often as you like."""

from outclass.index.building import Indexed, build
from outclass.index.table import Index

__all__ = ["Index", "Indexed", "build"]
