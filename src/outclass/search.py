"""Searching an index: words or an image -> the images nearest to it, on request only those that a guard calls OOD."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from outclass.encoders.base import Encoder, Vectors
from outclass.errors import NotReadyError, UsageError
from outclass.guard import Guard
from outclass.images.decode import EXTENSIONS, ImageLike
from outclass.images.loader import Reader
from outclass.index.table import Hits, Index
from outclass.records import Rows, Verdict
from outclass.words.vocabulary import Vocabulary

SENTENCES = (
    "the encoder 'lite' knows everyday nouns, not sentences: of {query!r} it understands the nouns at best. Index the "
    "images with a CLIP model to search for more: outclass index PHOTOS -o NAME.lance --encoder "
    "openai/clip-vit-base-patch32"
)
ARTICLE = re.compile(r"(an?|the)\s+", re.IGNORECASE)
MORE = 4  # times as many images are looked at, each time too few of them are OOD


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found.

    Attributes:
        id: as in the index: POSIX path relative to the folder that was indexed.
        similarity: cosine between it and the query, [-1, 1]; it ranks, and is no probability.
        width, height: pixels.
        verdict: what the guard says of it; None without a guard.
    """

    id: str
    similarity: float
    width: int
    height: int
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order; those of the verdict beside them, where there is one."""
        found = {"id": self.id, "similarity": self.similarity, "width": self.width, "height": self.height}
        if self.verdict is None:
            return found
        said = self.verdict.to_dict()
        said["label_similarity"] = said.pop("similarity")
        return found | {name: value for name, value in said.items() if name not in ("id", "error")}


def search(
    index: Index,
    query: ImageLike,
    encoder: Encoder,
    *,
    k: int = 10,
    where: str | None = None,
    guard: Guard | None = None,
    ood_only: bool = False,
    exact: bool = False,
) -> Rows:
    """The images nearest to words or to an image.

    Args:
        index: where to look.
        query: words, encoded as they stand; or an image: a path, bytes, PIL image or (H, W, 3) uint8 array.
        encoder: the one that made the index.
        k: how many.
        where: SQL condition on the columns of the index, such as ``width >= 640``.
        guard: judges what is found; of the same encoder.
        ood_only: leave out what the guard does not call OOD.
        exact: look at every row, however many there are.

    Returns:
        Up to k Hits, nearest first.

    Raises:
        MismatchError: the encoder, or the guard's, did not make the index.
        UsageError: no query, no SQL, ``ood_only`` without a guard, or a guard whose detector needs local vectors, which
            the index does not hold.
        NotReadyError: the guard has no threshold, so that it calls nothing OOD.
        ImageError: the image cannot be read.
    """
    index.check(encoder.info)
    return near(index, query_vector(query, encoder), k=k, where=where, guard=guard, ood_only=ood_only, exact=exact)


def near(
    index: Index,
    vector: Vectors,
    *,
    k: int = 10,
    where: str | None = None,
    guard: Guard | None = None,
    ood_only: bool = False,
    exact: bool = False,
) -> Rows:
    """The images nearest to a vector, (dim,) float32 of the encoder that made the index; else as ``search``."""
    if guard is None:
        if ood_only:
            raise UsageError("what is OOD, a guard has to say: --guard FILE, or guard=")
        return Rows(_hits(index.nearest(vector, k, where, exact), None))
    index.check(guard.encoder.info)
    if ood_only and guard.threshold is None:
        raise NotReadyError("the guard has no threshold, so nothing is OOD: outclass calibrate FOLDER -o my.guard")
    looked_at = k
    while True:
        found = index.nearest(vector, looked_at, where, exact)
        hits = _hits(found, _verdicts(index, guard, found))
        if not ood_only:
            return Rows(hits)
        unknown = [hit for hit in hits if hit.verdict and hit.verdict.is_ood]
        if len(unknown) >= k or len(hits) < looked_at:
            return Rows(unknown[:k])
        looked_at *= MORE


def query_vector(query: ImageLike, encoder: Encoder) -> Vectors:
    """(dim,) float32 of words or an image.

    Raises:
        UsageError: empty words.
        ImageError: the image cannot be read.
    """
    if isinstance(query, str) and not is_image_file(query):
        if not query.strip():
            raise UsageError("nothing to search for: give some words, or an image file")
        return encoder.encode_texts([query])[0]
    return encoder.encode_images(Reader(encoder.info.preprocess).one(query)[None])[0]


def is_image_file(query: str) -> bool:
    """Whether a query names an image file; a name that ends like one and is none there counts, to be an error."""
    return os.path.isfile(query) or os.path.splitext(query)[1].lower() in EXTENSIONS


def beyond_nouns(query: str) -> bool:
    """Whether words are more than one English noun or a name made of several ("golden retriever"), article aside."""
    return not Vocabulary.wordnet().synsets(ARTICLE.sub("", query.strip(), count=1))


def _verdicts(index: Index, guard: Guard, found: Hits) -> list[Verdict]:
    if "patches" not in guard.detector.needs:
        return list(guard.check_vectors(found.vectors, found.ids))
    return [
        verdict
        for some in index.with_patches(found)
        for verdict in guard.check_vectors(some.vectors, some.ids, some.patches)
    ]


def _hits(found: Hits, verdicts: list[Verdict] | None) -> list[Hit]:
    said = verdicts or (None,) * len(found.ids)
    return [
        Hit(id_, float(cosine), *size, verdict)
        for id_, cosine, size, verdict in zip(found.ids, found.similarity, found.sizes, said, strict=True)
    ]
