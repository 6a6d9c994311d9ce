"""Requests made from the OpenAPI document: what it says of statuses, types and bodies holds for all of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")
import httpx
import schemathesis
from schemathesis.specs.openapi import checks
from serving import ADMIN, live, setting

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.missing_required_header,
    checks.ignored_auth,
]
ROUTES = (
    "POST /v1/check", "POST /v1/classify", "POST /v1/search", "GET /v1/classes", "PUT /v1/classes", "POST /v1/classes",
    "DELETE /v1/classes", "GET /v1/guard", "GET /v1/drift", "POST /v1/drift/restart", "GET /healthz", "GET /readyz",
    "GET /metrics",
)  # fmt: skip
PLAIN = 5  # requests to a route that takes nothing: all are alike
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def takes_something(label):
    return not label.startswith("GET") and label != "POST /v1/drift/restart"


@pytest.fixture(scope="module")
def document():
    with live(setting(name_length=40, classes=30)) as address:
        found = schemathesis.openapi.from_url(f"{address}/openapi.json")
        found.address = address
        yield found


def ask(document, label, cases):
    """Send so many requests to a route, with the admin token where it may be used; statuses of the answers."""
    method, path = label.split()
    reset = httpx.put(f"{document.address}/v1/classes", json={"classes": ["red", "blue"]}, headers=ADMIN)
    assert reset.status_code == 200
    answered = Counter()

    @settings(max_examples=cases, deadline=None, suppress_health_check=QUIET, database=None)
    @given(case=document[path][method].as_strategy())
    def send(case):
        answer = case.call(headers=ADMIN if path in ("/v1/classes", "/v1/drift/restart") else {})
        case.validate_response(answer, checks=CHECKS)
        answered[answer.status_code] += 1

    send()
    return answered


def test_the_document_has_these_routes(document):
    assert {operation.ok().label for operation in document.get_all_operations()} == set(ROUTES)


@pytest.mark.parametrize("label", ROUTES)
def test_a_thousand_requests_from_the_document(document, label):
    answered = ask(document, label, 170 if takes_something(label) else PLAIN)
    assert answered[200] or label in ("POST /v1/search", "DELETE /v1/classes"), answered
    if takes_something(label):
        assert answered.total() >= 150


@pytest.mark.long
@pytest.mark.parametrize("label", [label for label in ROUTES if takes_something(label)])
def test_ten_thousand_requests_from_the_document(document, label):
    ask(document, label, 1700)
