"""The OpenAPI document: what the routes say of their bodies, answers and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from outclass.serve import models
from outclass.serve.problems import described

ANYWHERE = ("malformed", "method", "host", "internal", "unavailable")
ADMIN_ONLY: dict[str, Any] = {"security": [{"admin": []}]}
ADMIN_MORE: dict[str, Any] = {"security": [{}, {"admin": []}]}  # without the token there is an answer, too


def route(model: type[Any], *codes: str) -> dict[str, Any]:
    """What a route that answers with a model, or with one of these problems, tells FastAPI."""
    ok = {200: {"description": (model.__doc__ or "").strip(), "content": {"application/json": {"schema": _ref(model)}}}}
    return {"responses": ok | described(*ANYWHERE, *codes), "response_class": Response}


def plain_text() -> dict[str, Any]:
    """The same of one that answers with text for Prometheus."""
    ok = {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"responses": {200: ok} | described(*ANYWHERE), "response_class": Response}


def images_body() -> dict[str, Any]:
    """Of a route that takes images."""
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {"images": files}, "required": ["images"], "additionalProperties": False}
    listed = {"schema": _ref(models.ImagesIn), "example": {"images": [{"id": "a.png", "data": "iVBORw0KGgo="}]}}
    return {"requestBody": {"required": True, "content": {
        "multipart/form-data": {"schema": form}, "application/json": listed,
    }}}  # fmt: skip


def json_body(model: type[Any], example: Any) -> dict[str, Any]:
    """Of a route that takes a model."""
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(model), "example": example}}}
    }


def class_change() -> dict[str, Any]:
    """Of a route that changes the classes."""
    text = "The version that the change is meant for (ETag of GET); another one served = 412."
    match = {"name": "If-Match", "in": "header", "required": False, "schema": {"type": "string"}, "description": text}
    return ADMIN_ONLY | {"parameters": [match]}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole of it, made once."""
    if not app.openapi_schema:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = made.setdefault("components", {})
        components["schemas"] = models.schemas()
        components["securitySchemes"] = {"admin": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = made
    return app.openapi_schema


def _ref(model: type[Any]) -> dict[str, str]:
    return {"$ref": models.REF + model.__name__}
