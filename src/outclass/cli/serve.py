"""``outclass serve``: the guard as a REST API."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

from outclass.cli import options
from outclass.errors import MissingExtraError, UsageError

SERVING = "Serving"
LIMITS = "Limits"
SHORT = 16  # characters; a shorter token can be guessed
MAKE_TOKEN = '(umask 077; python3 -c "import secrets; print(secrets.token_urlsafe())" > {file})'


def serve(
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="An index of the same encoder (photos.lance), to be searched.", rich_help_panel=SERVING),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is this machine alone.", rich_help_panel=SERVING)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free.", rich_help_panel=SERVING)] = 8000,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar="OUTCLASS_ADMIN_TOKEN",
            help="Who sends it may change the classes; without one the guard is read-only. Others on this machine can "
            "see an option; the environment or a file they cannot.",
            show_default=False,
            rich_help_panel=SERVING,
        ),
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="File with the token in its first line.", rich_help_panel=SERVING)
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="File that every changed guard is written to, whole or not at all.", rich_help_panel=SERVING),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help=r"A web page at / (outclass\[page]).", rich_help_panel=SERVING)
    ] = True,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that requests may be for, such as a proxy's; may be repeated. Without one, a server for this "
            "machine alone goes by addresses and localhost, any other by every name.",
            show_default=False,
            rich_help_panel=SERVING,
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.", rich_help_panel=LIMITS)] = 64,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Size of a request.", rich_help_panel=LIMITS)] = 64,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1, help="Larger images become verdicts with an error, before they are decoded.", rich_help_panel=LIMITS
        ),
    ] = 50_000_000,
    max_classes: Annotated[int, typer.Option(min=1, help="Length of the class list.", rich_help_panel=LIMITS)] = 10_000,
    queue: Annotated[
        int,
        typer.Option(min=1, help="Images that may wait; then clients are told to try again.", rich_help_panel=LIMITS),
    ] = 512,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds for a request to arrive, and for its answer.", rich_help_panel=LIMITS),
    ] = 30.0,
    encoder: options.EncoderName = "lite",
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    threshold: options.ThresholdValue = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Answer over HTTP: verdicts for images that are sent, the class list, a search.

    Requests of many clients share the encoder's batches; their verdicts are those of [bold]outclass scan[/]. Ctrl-C
    or SIGTERM ends it when what was accepted is answered. It fetches nothing and listens on this machine alone unless
    told otherwise. With a calibrated guard it also says when the images that are sent are no longer like the
    calibration images. docs/serve.md describes the routes, and so does /openapi.json.

    [bold]Examples[/]

      outclass serve --classes cat,dog,car

      outclass serve --guard my.guard --index photos.lance --port 9000

      outclass serve --guard my.guard --admin-token-file token.txt --save my.guard

      curl -F images=@photo.jpg http://127.0.0.1:8000/v1/check

      curl http://127.0.0.1:8000/v1/drift
    """
    try:
        from outclass.serve.api import create_app
        from outclass.serve.metrics import Metrics
        from outclass.serve.run import is_loopback, listen, run, url, warm_changes, warn_if_open
    except ImportError as error:
        purpose = "outclass serve, whose web page comes with outclass[page],"
        raise MissingExtraError(error.name or "fastapi", "serve", purpose) from error
    from outclass.cli.guards import make_guard
    from outclass.cli.show import say
    from outclass.index import Index
    from outclass.serve.batching import QUEUE_BYTES
    from outclass.serve.page import has_gradio
    from outclass.serve.service import Limits, Service

    token = _token(admin_token, admin_token_file)
    limits = Limits(
        images=max_images,
        request_bytes=max_megabytes << 20,
        upload_bytes=max(4 * max_megabytes, 256) << 20,
        queue_images=max(queue, max_images),  # the largest request fits into an empty queue
        queue_bytes=max(QUEUE_BYTES, max_megabytes << 20),
        pixels=max_pixels,
        classes=max_classes,
        seconds=timeout,
    )
    guard = make_guard(
        classes, guard_file, encoder, detector, negatives, threshold, templates, device, threads, batch_size, max_pixels
    )
    metrics = Metrics()
    service = Service(guard, Index(index) if index else None, save, limits, metrics.batch)
    service.warm_up()
    listening = listen(host, port)
    stamp()
    warn_if_open(host, token)
    if not quiet:
        names = ", ".join(guard.classes[:5]) + (", ..." if len(guard.classes) > 5 else "")
        rights = "classes can be changed with the admin token" if token else "read-only"
        address = url(listening)
        looks = "open it in a browser" if has_gradio() else 'no page: pip install "outclass[page]"'
        say(
            f"{address} serves {len(guard.classes)} classes ({names}), version {service.served.version}, {rights}"
            + f"; {looks}" * page
        )
        say(f"try: curl -F images=@photo.jpg {address}/v1/check; all routes: {address}/openapi.json; Ctrl-C ends")
    # On other addresses the names are not known; on this machine's own, a strange one is another site's.
    hosts = allow_host or ([] if is_loopback(host) else None)
    app = create_app(service, metrics, token, page, hosts)
    if token or page:
        warm_changes(service)
    run(app, service, listening)


class Lines(options.Notes):
    """The log of a server: each line begins with its time in UTC, and what went wrong in here comes with its trace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        serious = record.levelno >= logging.WARNING
        # Where nobody reads the log any more, or its disk is full, the service goes on; rich would end the program.
        with contextlib.suppress(OSError, ValueError):
            lines = "\n".join(filter(None, [f"{when} {record.getMessage()}", trace]))
            typer.secho(lines, err=True, fg="yellow" if serious else None, dim=not serious)


def stamp() -> None:
    """From here on, what outclass and uvicorn log goes to stderr with its time, from the level that was asked for."""
    ours = logging.getLogger("outclass")
    for notes in [one for one in ours.handlers if isinstance(one, options.Notes)]:
        lines = Lines(notes.level)
        ours.removeHandler(notes)
        ours.addHandler(lines)
        logging.getLogger("uvicorn").handlers = [lines]


def _token(given: str | None, file: Path | None) -> str | None:
    """The admin token, from wherever it was given."""
    from outclass.cli.show import say

    if given is not None and file is not None:
        raise UsageError("give the admin token once: --admin-token (or OUTCLASS_ADMIN_TOKEN) or --admin-token-file")
    if file is not None:
        try:
            given = (file.read_text(encoding="utf-8").splitlines() or [""])[0]
        except FileNotFoundError:
            make = MAKE_TOKEN.format(file=shlex.quote(str(file)))
            raise UsageError(f"cannot read the admin token: there is no file {str(file)!r}; make one: {make}") from None
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read the admin token from {str(file)!r}: {why}") from error
    if given is None:
        return None
    if not (token := given.strip()):
        raise UsageError("the admin token is empty; leave the option out for a read-only server")
    if not token.isascii():
        raise UsageError("the admin token has letters that a header cannot carry; use a-z, A-Z, 0-9, - and _")
    if len(token) < SHORT:
        say(f"the admin token has fewer than {SHORT} characters and can be guessed", style="yellow")
    return token
