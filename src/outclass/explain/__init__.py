"""Where in an image the unknown is: scores for every place of the encoder's grid, and the picture of them."""

from outclass.explain.places import Explanation, Region, explain

__all__ = ["Explanation", "Region", "explain"]
