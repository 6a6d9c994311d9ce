"""What a client is told when something is wrong: application/problem+json (RFC 9457), one kind for each reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

MEDIA = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """A reason to refuse: its status, its stable word, and a title for people."""

    status: int
    code: str
    title: str


KINDS = {
    kind.code: kind
    for kind in (
        Kind(400, "malformed", "The request cannot be read"),
        Kind(401, "unauthorised", "The admin token is missing or wrong"),
        Kind(403, "read_only", "This server's guard is read-only"),
        Kind(404, "not_found", "There is nothing here"),
        Kind(405, "method", "This method is not offered here"),
        Kind(408, "slow_upload", "The request took too long to arrive"),
        Kind(409, "conflict", "The guard cannot be changed or asked like that"),
        Kind(412, "version", "The guard has changed meanwhile"),
        Kind(413, "too_large", "The request is too large"),
        Kind(415, "media_type", "This content type is not read here"),
        Kind(421, "host", "This server does not go by that name"),
        Kind(422, "invalid", "The request can be read but makes no sense here"),
        Kind(429, "queue_full", "Too many images are waiting"),
        Kind(499, "gone", "The client has gone"),
        Kind(500, "internal", "Something went wrong in the server"),
        Kind(503, "unavailable", "The server cannot answer now"),
    )
}
BY_STATUS = {kind.status: kind for kind in KINDS.values()}


@dataclass
class ProblemError(Exception):
    """Ends a request with a problem.

    Attributes:
        code: one of ``KINDS``.
        detail: what was wrong, what is expected, what to do next.
        headers: of the response, such as ``Retry-After``.
    """

    code: str
    detail: str
    headers: dict[str, str] = field(default_factory=dict)


def problem_response(problem: ProblemError, request_id: str | None) -> JSONResponse:
    """The response that says it."""
    kind = KINDS[problem.code]
    return JSONResponse(
        {
            "type": f"urn:outclass:problem:{kind.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": problem.detail,
            "code": kind.code,
            "request_id": request_id,
        },
        kind.status,
        problem.headers,
        MEDIA,
    )


def described(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route in the OpenAPI document, with an example each."""
    return {
        KINDS[code].status: {
            "description": KINDS[code].title,
            "content": {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _example(code)}},
        }
        for code in codes
    }


def _example(code: str) -> dict[str, Any]:
    kind = KINDS[code]
    return {
        "type": f"urn:outclass:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": EXAMPLES.get(code, kind.title),
        "code": code,
        "request_id": "b0c7d5e1f2a34c58",
    }


EXAMPLES = {
    "malformed": "the body is no JSON: expected value at line 1 column 1",
    "unauthorised": "send Authorization: Bearer TOKEN with the token that the server was started with",
    "read_only": "the server was started without an admin token; outclass serve --admin-token-file FILE",
    "not_found": "no index is served: outclass serve --index photos.lance",
    "conflict": "the detector 'mahalanobis' learned from images for its class list alone",
    "version": "the version served is '5f2c9a1b7d03', not '0a1b2c3d4e5f': read the classes again",
    "too_large": "67,108,865 bytes are over the limit of 67,108,864",
    "media_type": "expected multipart/form-data or application/json, got 'text/plain'",
    "host": "the request is for 'photos.example', which is no name of this server",
    "invalid": "the class 'cat' is given twice (as 'cat' before); remove one",
    "queue_full": "512 images wait to be read; try again in a second",
    "unavailable": "the server is shutting down",
}
