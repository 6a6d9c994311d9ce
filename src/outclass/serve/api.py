"""The REST API: routes, their documents, and how a request waits for its answers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from outclass import __version__
from outclass.errors import MismatchError, NotReadyError, UsageError
from outclass.serve import models
from outclass.serve.batching import ClosedError, QueueFullError, Ticket
from outclass.serve.bodies import Images, decode_base64, images_of, read_json, said
from outclass.serve.document import (
    ADMIN_MORE,
    ADMIN_ONLY,
    class_change,
    document,
    images_body,
    json_body,
    plain_text,
    route,
)
from outclass.serve.gate import AGAIN, Gate
from outclass.serve.metrics import Metrics
from outclass.serve.problems import BY_STATUS, KINDS, ProblemError, problem_response
from outclass.serve.service import (
    WORDS_A_CLASS,
    Check,
    Classify,
    ConflictError,
    Embed,
    SavingError,
    Served,
    Service,
    StaleError,
    check_probe,
    class_dicts,
)

READY_SECONDS = 10.0
ABOUT = """Says for every image whether it belongs to the known classes. `ood_score`: higher = more OOD (out of
distribution: none of the classes). `is_ood` = `ood_score` > `threshold`. Errors are `application/problem+json`."""
BODY = ("slow_upload", "too_large", "media_type", "invalid", "queue_full")
ADMIN = ("unauthorised", "read_only", "conflict", "version")
How = Literal["set", "add", "remove"]


def create_app(
    service: Service,
    metrics: Metrics,
    admin_token: str | None = None,
    page: bool = False,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The API of a service.

    Args:
        service: what is served; closed when the app ends.
        metrics: counts; its ``batch`` is to be the service's ``on_batch``.
        admin_token: lets its bearer change the classes; None = nobody can.
        page: the web page at ``/``, too; without Gradio, words there that say how to get it.
        hosts: names that requests may be for, besides addresses and localhost; None = any.
    """
    metrics.watch(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, service.limits.seconds)

    # FastAPI's own pages of the document load scripts from a CDN: this server makes no browser leave the machine.
    app = FastAPI(
        title="outclass", version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(cast(Any, Gate), service=service, metrics=metrics, hosts=hosts)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    _translate(app, metrics)
    _add_judging(app, service, metrics)
    _add_classes(app, service, admin_token)
    _add_state(app, service, metrics, admin_token is not None)
    _add_drift(app, service, admin_token)
    if page:
        from outclass.serve.page import add_page

        add_page(app, service, admin_token)
    return app


def _add_judging(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/check", tags=["images"], **route(models.VerdictsOut, *BODY), openapi_extra=images_body())
    async def check(request: Request) -> Response:
        """Judge 1 to 64 images: files in multipart fields called `images`, or JSON with base64."""
        images = await images_of(request, service.limits)
        served = service.served
        said = await answers(request, service, images, Check(served))
        verdicts = [verdict for verdict, _ in said]
        metrics.verdicts(verdicts)
        service.drift.add(served.version, verdicts)
        if service.drift.behind:  # not here: all other requests would wait, too
            await asyncio.to_thread(service.drift.catch_up)
        rows = [verdict.to_dict() | {"sha256": sha256, "version": served.version} for verdict, sha256 in said]
        return JSONResponse({"version": served.version, "verdicts": rows})

    @app.post("/v1/classify", tags=["images"], **route(models.ClassifiedListOut, *BODY), openapi_extra=images_body())
    async def classify(
        request: Request, top: Annotated[int, Query(ge=1, le=1000, description="Classes an image.")] = 5
    ) -> Response:
        """The known classes that fit best, whether or not an image is one of them."""
        images = await images_of(request, service.limits)
        served = service.served
        rows = [
            {
                "id": id_,
                "predictions": None if ranked is None else [_fields(one) for one in ranked],
                "error": error,
                "sha256": sha256,
                "version": served.version,
            }
            for (id_, ranked, error), sha256 in await answers(request, service, images, Classify(served, top))
        ]
        return JSONResponse({"version": served.version, "images": rows})

    @app.post("/v1/search", tags=["images"], **route(models.HitsOut, *BODY, "not_found", "conflict"),
              openapi_extra=json_body(models.SearchIn, {"text": "dog", "k": 5}))  # fmt: skip
    async def search(request: Request) -> Response:
        """The images of the served index that are nearest to words or to an image, with their verdicts."""
        if service.index is None:
            raise ProblemError("not_found", "no index is served: outclass serve --index photos.lance")
        asked = await read_json(request, models.SearchIn, service.limits.query_length + 100)
        if (asked.text is None) == (asked.image is None):
            raise ProblemError("invalid", "give either text or image")
        if asked.k > service.limits.found:
            raise ProblemError("invalid", f"k: at most {service.limits.found}, got {asked.k}")
        query: Any = asked.text
        if asked.image is not None:
            image = await asyncio.to_thread(decode_base64, asked.image, "image")
            ((query, _),) = await answers(request, service, [("image", image)], Embed())
            if isinstance(query, str):
                raise ProblemError("invalid", f"the image cannot be read: {query}")
        served, hits = await asyncio.to_thread(service.search, query, asked.k, asked.ood_only)
        return JSONResponse({"version": served.version, "hits": [hit.to_dict() for hit in hits]})


def _add_classes(app: FastAPI, service: Service, admin_token: str | None) -> None:
    example = {"classes": ["cat", {"name": "dog", "synonyms": ["puppy"]}]}
    writing = {
        **route(models.ClassesOut, *BODY, *ADMIN),
        "openapi_extra": json_body(models.ClassesIn, example) | class_change(),
    }

    async def change(request: Request, how: How, classes: Any) -> Response:
        expected = _if_match(request, service.served.version)
        return _classes(await asyncio.to_thread(service.change_classes, how, classes, expected))

    async def changed_by_body(request: Request, how: How) -> Response:
        _authorise(request, admin_token)
        most = service.limits.classes * (service.limits.name_length + 4 * WORDS_A_CLASS)
        return await change(request, how, (await read_json(request, models.ClassesIn, most)).parsed())

    @app.get("/v1/classes", tags=["classes"], **route(models.ClassesOut))
    async def get_classes() -> Response:
        """The known classes. The ETag is the guard's version, for `If-Match` of a change."""
        return _classes(service.served)

    @app.put("/v1/classes", tags=["classes"], **writing)
    async def set_classes(request: Request) -> Response:
        """Know these classes and no others, for every request that begins after the answer."""
        return await changed_by_body(request, "set")

    @app.post("/v1/classes", tags=["classes"], **writing)
    async def add_classes(request: Request) -> Response:
        """Learn more classes."""
        return await changed_by_body(request, "add")

    @app.delete("/v1/classes", tags=["classes"], **route(models.ClassesOut, "invalid", "too_large", *ADMIN),
                openapi_extra=class_change())  # fmt: skip
    async def remove_classes(
        request: Request, name: Annotated[list[str], Query(min_length=1, description="May be repeated.")]
    ) -> Response:
        """Forget classes."""
        _authorise(request, admin_token)
        return await change(request, "remove", models.ClassesIn(classes=list(name)).parsed())


def _add_state(app: FastAPI, service: Service, metrics: Metrics, writable: bool) -> None:
    @app.get("/v1/guard", tags=["state"], **route(models.GuardOut))
    async def guard() -> Response:
        """What is served: encoder, detector, threshold, calibration, limits."""
        return JSONResponse(about(service) | {"writable": writable})

    @app.get("/healthz", tags=["state"], **route(models.HealthOut))
    async def healthz() -> Response:
        """The process answers. Whether it can judge, `/readyz` says."""
        return JSONResponse({"status": "ok", "outclass": __version__})

    @app.get("/readyz", tags=["state"], **route(models.ReadyOut))
    async def readyz(request: Request) -> Response:
        """Score a generated picture, through queue, encoder and detector; 503 where that fails or takes 10 s."""
        began, version = time.monotonic(), service.served.version
        if service.draining:
            raise ProblemError("unavailable", "the server is shutting down", dict(AGAIN))
        try:
            ((verdict, _),) = await wait_for(request, service, service.probe(), READY_SECONDS)
            check_probe(verdict)
        except ProblemError:
            raise
        except Exception as error:  # the encoder's own, too: what is wrong, the log says
            raise ProblemError("unavailable", f"not ready: {type(error).__name__}", dict(AGAIN)) from error
        return JSONResponse({"ready": True, "version": version, "seconds": round(time.monotonic() - began, 4)})

    @app.get("/metrics", tags=["state"], **plain_text())
    async def metrics_text() -> Response:
        """For Prometheus: images by decision, failures by reason, latency, batch sizes, queue length, drift."""
        text = await asyncio.to_thread(metrics.text)  # the first one may have to make a monitor
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_drift(app: FastAPI, service: Service, admin_token: str | None) -> None:
    @app.get("/v1/drift", tags=["drift"], **route(models.DriftOut, *ADMIN[:2]), openapi_extra=ADMIN_MORE)
    async def drift(request: Request) -> Response:
        """How many of the images sent to `/v1/check` are OOD, and whether they have changed. `new` takes the token."""
        private = request.headers.get("authorization", "").lower().startswith("bearer")
        if private:  # a proxy's own login is none of ours
            _authorise(request, admin_token)
        return JSONResponse(await asyncio.to_thread(service.drift.state, private))

    @app.post("/v1/drift/restart", tags=["drift"], **route(models.DriftOut, *ADMIN[:2]), openapi_extra=ADMIN_ONLY)
    async def restart(request: Request) -> Response:
        """Begin anew, once an alarm was looked into: counts, rate and alarm are forgotten."""
        _authorise(request, admin_token)
        await asyncio.to_thread(service.drift.restart)
        return JSONResponse(await asyncio.to_thread(service.drift.state, True))


async def answers(request: Request, service: Service, images: Images, work: Any) -> list[tuple[Any, str | None]]:
    """What a work says of images; they are taken back when the client goes or the time is over.

    Raises:
        ProblemError: the queue is full, the server shuts down, or it takes too long.
    """
    size = sum(len(image) for _, image in images)
    if size > service.limits.queue_bytes:
        raise ProblemError(
            "too_large", f"{size:,} bytes of images are over the limit of {service.limits.queue_bytes:,}"
        )
    try:
        ticket = service.submit(images, work)
    except QueueFullError:
        waiting, _ = service.batcher.queued
        raise ProblemError(
            "queue_full", f"{waiting} images wait to be read; try again in a second", dict(AGAIN)
        ) from None
    except ClosedError:
        raise ProblemError("unavailable", "the server is shutting down", dict(AGAIN)) from None
    return await wait_for(request, service, ticket, service.limits.seconds)


async def wait_for(request: Request, service: Service, ticket: Ticket, seconds: float) -> list[tuple[Any, str | None]]:
    """The answers of a ticket, unless its client goes or time runs out first; then it is cancelled.

    Raises:
        ProblemError: so it was.
    """
    done: asyncio.Future[Any] = asyncio.wrap_future(ticket.answers)
    left: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({done, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if left.done():
            raise ProblemError("gone", "the client has gone")
        raise ProblemError("unavailable", f"no answer within {seconds:g} s; try again, with fewer images", dict(AGAIN))
    finally:
        left.cancel()
        if not done.done():
            service.batcher.cancel(ticket)
            done.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def about(service: Service) -> dict[str, Any]:
    """What is served, as plain JSON."""
    served, index = service.served, service.index
    guard = served.guard
    info, detector, threshold = guard.encoder.info, guard.detector, guard.threshold
    return {
        "outclass": __version__,
        "version": served.version,
        "since": served.since,
        "classes": len(guard.classes),
        "templates": list(guard.class_set.templates),
        "encoder": {"name": info.name, "fingerprint": info.fingerprint, "precision": info.precision},
        "detector": {"name": detector.info.name, "title": detector.info.title, "params": detector.params},
        "negatives": guard.negatives and guard.negatives.about(),
        "threshold": threshold.value if threshold else None,
        "threshold_source": threshold.source if threshold else None,
        "calibration": guard.calibrated.about(guard.classes) if guard.calibrated else None,
        "index": None if index is None else {"images": len(index), "encoder": index.encoder},
        "limits": asdict(service.limits),
    }


def _classes(served: Served) -> Response:
    classes = class_dicts(served.judge.class_set)
    body = {"version": served.version, "calibrated": served.judge.calibrated is not None, "classes": classes}
    return JSONResponse(body, headers={"ETag": f'"{served.version}"'})


def _fields(record: Any) -> dict[str, Any]:
    return asdict(record)


def _authorise(request: Request, token: str | None) -> None:
    if token is None:
        raise ProblemError(
            "read_only", "the server was started without an admin token: outclass serve --admin-token-file FILE"
        )
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # Digests are of one length, so the time of the comparison tells nothing of the token, its length included.
    same = hmac.compare_digest(*(hashlib.sha256(one.strip().encode()).digest() for one in (given, token)))
    if kind.lower() != "bearer" or not same:
        detail = "send Authorization: Bearer TOKEN with the token that the server was started with"
        raise ProblemError("unauthorised", detail, {"WWW-Authenticate": "Bearer"})


def _if_match(request: Request, version: str) -> str | None:
    """The version that a change is meant for; None = any."""
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in request.headers.get("if-match", "*").split(",")]
    return None if "*" in tags else version if version in tags else tags[0][:100]


def _translate(app: FastAPI, metrics: Metrics) -> None:
    """Whatever a route raises becomes a problem."""
    kinds: dict[type[Exception], str] = {
        UsageError: "invalid", StaleError: "version", ConflictError: "conflict", NotReadyError: "conflict",
        MismatchError: "conflict", SavingError: "unavailable", ClientDisconnect: "gone",
    }  # fmt: skip

    def respond(request: Request, problem: ProblemError) -> Response:
        metrics.failure(problem.code)
        return problem_response(problem, request.scope["state"].get("request_id"))

    def named(code: str) -> Callable[[Request, Exception], Any]:
        async def handle(request: Request, error: Exception) -> Response:
            return respond(request, ProblemError(code, str(error) or KINDS[code].title))

        return handle

    for kind, code in kinds.items():
        app.add_exception_handler(kind, named(code))

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request, ProblemError("invalid", said(error.errors())))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = BY_STATUS[error.status_code].code if error.status_code in BY_STATUS else "malformed"
        detail = f"{error.detail}; GET /openapi.json lists what there is"
        return respond(request, ProblemError(code, detail, dict(error.headers or {})))
