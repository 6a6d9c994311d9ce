"""Images judged by their parts: overlapping tiles, or boxes that somebody else found."""

from outclass.tiles.tiler import Tiler
from outclass.tiles.verdicts import TILE_FIELDS, TiledVerdict, TileScore, TileVerdict

__all__ = ["TILE_FIELDS", "TileScore", "TileVerdict", "TiledVerdict", "Tiler"]
