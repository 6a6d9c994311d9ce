"""Bodies of requests -> images and models. Nothing is written to disk, no address is fetched, no path is opened."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from outclass.serve.models import ImagesIn
from outclass.serve.problems import ProblemError
from outclass.serve.service import ID_LENGTH, Limits

Model = TypeVar("Model", bound=BaseModel)
Images = list[tuple[str, bytes]]

FIELD = "images"
HEADER_BYTES = 16_384  # of the head of one part
MOST_ERRORS = 10_000


async def images_of(request: Request, limits: Limits) -> Images:
    """The images of a request, multipart or JSON: (id, bytes), in order.

    Raises:
        ProblemError: it cannot be read, is of another type, or has no image or too many.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        images = await _multipart(request, limits)
    elif kind == "application/json":
        listed = await read_json(request, ImagesIn, limits.images * (ID_LENGTH + 10))
        _check_count(len(listed.images), limits)
        images = await asyncio.to_thread(_decode, listed)
    else:
        raise ProblemError("media_type", f"expected multipart/form-data or application/json, got {kind[:100]!r}")
    _check_count(len(images), limits)
    return images


async def read_json(request: Request, model: type[Model], most: int) -> Model:
    """A JSON body as a model.

    Args:
        request: whose body is read.
        model: what it is to be.
        most: commas and brackets that it may have, in texts too. A value takes up to a hundred times the bytes of
            its text while it is read, so more values than any good request has are refused before.

    Raises:
        ProblemError: another type, no JSON, too many values, or not what the model says.
    """
    if (kind := media_type(request)) != "application/json":
        raise ProblemError("media_type", f"expected application/json, got {kind[:100]!r}")
    body = await request.body()
    if (count := await asyncio.to_thread(lambda: sum(map(body.count, (b",", b"[", b"{"))))) > most:
        raise ProblemError("too_large", f"a JSON body of {count:,} commas and brackets is over the limit of {most:,}")
    try:
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        if error.error_count() > MOST_ERRORS:  # a thousand bytes each, as Python's objects
            raise ProblemError("invalid", f"{error.error_count():,} values are not what they should be") from None
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        code = "malformed" if any(one["type"] == "json_invalid" for one in wrong) else "invalid"
        raise ProblemError(code, said(wrong)) from None


def said(errors: Sequence[Any]) -> str:
    """What pydantic found wrong, in one line; no value that the client sent is in it."""
    lines = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return ascii("; ".join(lines) + more)[1:-1][:1000]


def decode_base64(data: str, where: str) -> bytes:
    """The bytes that a text in base64 stands for.

    Raises:
        ProblemError: it stands for none.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError(
            "invalid",
            f"{where} is no base64 ({error}); expected the bytes of an image file, no address and no data: prefix",
        ) from None


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_count(count: int, limits: Limits) -> None:
    if not 1 <= count <= limits.images:
        raise ProblemError(
            "invalid" if not count else "too_large", f"expected 1 to {limits.images} images, got {count}"
        )


def _decode(listed: ImagesIn) -> Images:
    return [
        (str(place) if one.id is None else one.id, decode_base64(one.data, f"{FIELD}.{place}.data"))
        for place, one in enumerate(listed.images)
    ]


class InMemory(MultiPartParser):
    """Keeps files in memory, whose size the gate bounds, and knows whether the body came to its end."""

    spool_max_size = 1 << 40
    ended = False
    head = 0

    def on_end(self) -> None:
        """The last boundary was read."""
        self.ended = True

    def on_part_begin(self) -> None:
        """Another part."""
        self.head = 0
        super().on_part_begin()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._grow(end - start)
        super().on_header_field(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._grow(end - start)
        super().on_header_value(data, start, end)

    def _grow(self, size: int) -> None:
        self.head += size
        if self.head > HEADER_BYTES:
            raise MultiPartException("a part has a head of too many bytes")


async def _multipart(request: Request, limits: Limits) -> Images:
    # One file more than allowed is read to be counted; the gate bounds the bytes.
    parser = InMemory(request.headers, request.stream(), max_files=limits.images, max_fields=0, max_part_size=1)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise ProblemError("too_large", f"expected 1 to {limits.images} images, got more") from None
        if error.message.startswith("Too many fields"):
            raise ProblemError(
                "invalid", f"expected files alone, in fields called {FIELD!r}: give each a filename"
            ) from None
        raise ProblemError("malformed", f"the multipart body cannot be read: {ascii(error.message)[1:-1]}") from None
    except (FormParserError, ValueError) as error:
        raise ProblemError("malformed", f"the multipart body cannot be read: {type(error).__name__}") from None
    try:
        files = form.multi_items()
        if not parser.ended and (files or parser.items):
            raise ProblemError("malformed", "the multipart body ends before its last boundary; send it again")
        if strange := {name for name, _ in files} - {FIELD}:
            raise ProblemError("invalid", f"expected fields called {FIELD!r}, got {min(strange)[:100]!a}")
        return [
            (_name(file.filename, place), await file.read())
            for place, (_, file) in enumerate(files)
            if isinstance(file, UploadFile)
        ]
    finally:
        await form.close()


def _name(filename: str | None, place: int) -> str:
    """What a client calls an image, to be given back to it and for nothing else."""
    return (filename or "").encode("utf-8", "backslashreplace").decode()[:ID_LENGTH] or str(place)
