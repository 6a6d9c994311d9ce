"""The page itself, in Gradio: what stands where, and what happens when something is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from outclass.decide.calibration import images_needed
from outclass.errors import OutclassError
from outclass.report.page import number
from outclass.serve import page_html as html
from outclass.serve.page_session import SEEN, Pending, Session, Sessions, as_text
from outclass.serve.service import ConflictError, SavingError, Service
from outclass.serve.words import LANGUAGES, preferred, text

RATES = ("1 %", "5 %", "10 %", "20 %")
DIGITS = 6  # of the threshold, significant
ORDERS = ("unknown", "known", "dropped")
LETTERS = 200_000  # of the text box with the classes
AT_ONCE, WAITING = 8, 64  # events that run, events that wait
EXPECTED = (OutclassError, ConflictError, SavingError)  # what a visitor is told; all else is a fault of ours


@dataclass
class Page:
    """The parts of one page and what they show.

    Attributes:
        blocks: what Gradio serves.
    """

    service: Service
    sessions: Sessions
    pending: Pending
    admin_token: str | None
    blocks: gr.Blocks = field(init=False)
    _said: list[tuple[Any, Callable[[str], dict[str, Any]]]] = field(default_factory=list)

    def build(self) -> gr.Blocks:
        """Put everything in its place."""
        self.blocks = gr.Blocks(title="outclass", fill_width=True, analytics_enabled=False)
        with self.blocks:
            with gr.Row(elem_id="oc-top"):
                self._part(
                    gr.HTML,
                    lambda say: {"value": html.header(say.language)},
                    scale=5,
                    min_width=280,
                    elem_id="oc-header",
                )
                self.language = self._part(
                    gr.Radio, lambda say: {"label": say("language")}, scale=1, min_width=210, value="en",
                    choices=[(name, code) for code, name in LANGUAGES.items()], elem_id="oc-language",
                )  # fmt: skip
            with gr.Row(elem_id="oc-columns"):
                with gr.Column(scale=2, min_width=300):
                    self._left()
                with gr.Column(scale=5, min_width=300):
                    self._right()
            self._part(gr.HTML, lambda say: {"value": self._foot(say.language)})
            self._events()
        self.blocks.queue(default_concurrency_limit=AT_ONCE, max_size=WAITING, api_open=False)
        return self.blocks

    # What stands where

    def _part(self, kind: Any, texts: Callable[[Any], dict[str, Any]], **fixed: Any) -> Any:
        """A component whose texts follow the language."""
        part = kind(**texts(Say("en")), **fixed)
        self._said.append((part, lambda language: texts(Say(language))))
        return part

    def _left(self) -> None:
        limit = min(SEEN, self.service.limits.images)
        self._part(gr.HTML, lambda say: {"value": html.zone(say.language, "oc-check", limit, camera=True)})
        self.checked = gr.Textbox(label="ticket", elem_classes="oc-ticket", elem_id="oc-check")
        self.classes = self._part(
            gr.Textbox, lambda say: {"label": say("classes"), "info": say("classes_info")},
            lines=5, max_lines=12, max_length=LETTERS, elem_id="oc-classes",
        )  # fmt: skip
        self.judge = self._part(gr.Button, lambda say: {"value": say("judge")}, variant="primary", elem_id="oc-judge")
        with gr.Column(elem_id="oc-scores"):
            self.chart = gr.HTML(elem_id="oc-histogram")
            self.threshold = self._part(
                gr.Slider,
                lambda say: {"label": say("threshold")},
                buttons=[],
                interactive=False,
                elem_id="oc-threshold",
            )
            self.own = self._part(
                gr.Button, lambda say: {"value": say("own")}, size="sm", variant="secondary", elem_id="oc-own"
            )
        with self._part(gr.Accordion, lambda say: {"label": say("calibrate")}, open=False, elem_id="oc-calibration"):
            self.rate = self._part(
                gr.Radio, lambda say: {"label": say("rate")}, choices=list(RATES), value="5 %", elem_id="oc-rate"
            )
            self._part(gr.HTML, lambda say: {"value": html.zone(say.language, "oc-known", self.service.limits.images)})
            self.known = gr.Textbox(label="ticket", elem_classes="oc-ticket", elem_id="oc-known")
            self.calibration = gr.HTML(elem_id="oc-calibrated")
            self._part(gr.HTML, lambda say: {"value": html.hint(say("calibrate_hint"))})
        if self.admin_token is not None:
            with self._part(gr.Accordion, lambda say: {"label": say("publish")}, open=False, elem_id="oc-publishing"):
                self.token = self._part(
                    gr.Textbox, lambda say: {"label": say("token"), "info": say("publish_hint")},
                    type="password", max_length=1000, elem_id="oc-token",
                )  # fmt: skip
                self.publish = self._part(gr.Button, lambda say: {"value": say("publish_now")}, elem_id="oc-publish")

    def _right(self) -> None:
        self.status = gr.HTML(elem_id="oc-said")
        with gr.Row(elem_id="oc-tools"):
            self.order = self._part(
                gr.Dropdown,
                lambda say: {"label": say("order"), "choices": [(say(f"order_{one}"), one) for one in ORDERS]},
                value="unknown", filterable=False, scale=2, min_width=150, elem_id="oc-order",
            )  # fmt: skip
            self.clear = self._part(
                gr.Button, lambda say: {"value": say("clear")}, scale=1, min_width=130, elem_id="oc-clear"
            )
        self.summary = gr.HTML(elem_id="oc-counts")
        self.cards = gr.HTML(elem_id="oc-gallery")
        if self.service.index is not None:
            with self._part(gr.Accordion, lambda say: {"label": say("search")}, open=True, elem_id="oc-searching"):
                self.query = self._part(
                    gr.Textbox, lambda say: {"label": say("query")},
                    max_length=self.service.limits.query_length, elem_id="oc-query",
                )  # fmt: skip
                self.find = self._part(gr.Button, lambda say: {"value": say("find")}, elem_id="oc-find")
                self.hits = gr.HTML(elem_id="oc-hits")

    def _foot(self, language: str) -> str:
        guard = self.service.served.guard
        return html.foot(language, self.service.served.version, guard.encoder.info.name, guard.detector.info.name)

    # What happens

    def _events(self) -> None:
        view = [self.status, self.summary, self.cards, self.chart]
        bounded = [*view, self.threshold]
        labels = [part for part, _ in self._said]
        everything = [*labels, *bounded, self.classes, self.calibration, self.language]
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        newest = hidden | {"trigger_mode": "always_last"}

        self.blocks.load(self._open, None, everything, **hidden)
        self.blocks.unload(self._leave)
        self.language.input(self._speak, [self.language, self.rate], everything, **newest)
        self.checked.change(self._add, self.checked, bounded, **hidden | {"trigger_mode": "multiple"})
        gr.on([self.judge.click, self.classes.submit], self._judge, [self.classes, self.rate],
              [*bounded, self.classes, self.calibration], **newest)  # fmt: skip
        self.threshold.input(self._slide, self.threshold, view, **newest)
        self.own.click(self._own, None, bounded, **newest)
        self.order.input(self._sort, self.order, view, **newest)
        self.clear.click(self._clear, None, bounded, **newest)
        self.known.change(self._calibrate, [self.known, self.rate], [*bounded, self.calibration],
                         **hidden | {"trigger_mode": "multiple"})  # fmt: skip
        self.rate.input(self._rate, self.rate, [*bounded, self.calibration], **newest)
        if self.admin_token is not None:
            self.publish.click(self._publish, self.token, [self.status, self.token], **hidden)
        if self.service.index is not None:
            gr.on([self.find.click, self.query.submit], self._search, self.query, [self.status, self.hits], **newest)

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(request.session_hash, preferred(request.headers.get("accept-language", "")))

    def _view(self, session: Session, message: str = "", wrong: bool = False) -> list[Any]:
        """Status, counts, cards and histogram of a session as it is now."""
        pairs = session.verdicts()
        said = [verdict for _, verdict in pairs]
        limit = session.guard.threshold.value if session.guard.threshold else None
        return [
            html.status(message, wrong),
            html.summary(session.language, said, session.csv() if said else b""),
            html.cards(session.language, pairs),
            html.chart(session.language, said, limit),
        ]

    def _bounded(self, session: Session, message: str = "", wrong: bool = False) -> list[Any]:
        return [*self._view(session, message, wrong), slider(session)]

    def _attempt(self, session: Session, act: Callable[[], str]) -> tuple[str, bool]:
        """Do something; what to say of it, and whether it went wrong."""
        try:
            return act(), False
        except EXPECTED as error:
            return text(session.language, "wrong", reason=str(error)), True

    def _everything(self, session: Session, rate: str) -> list[Any]:
        labels = [kind(session.language) for _, kind in self._said]
        updates = [gr.update(**one) for one in labels]
        progress = self._progress(session, rate)
        return [*updates, *self._bounded(session), as_text(session.guard.class_set.classes), progress, session.language]

    def _open(self, request: gr.Request) -> list[Any]:
        return self._everything(self._session(request), "5 %")

    def _leave(self, request: gr.Request) -> None:
        self.sessions.end(request.session_hash)

    def _speak(self, language: str, rate: str, request: gr.Request) -> list[Any]:
        session = self._session(request)
        session.language = language if language in LANGUAGES else "en"
        return self._everything(session, rate)

    def _add(self, tickets: str, request: gr.Request) -> list[Any]:
        session, images = self._session(request), self.pending.take(tickets)
        if not images:
            return self._bounded(session, text(session.language, "expired"), wrong=True)
        left_out = session.add(images)
        message = text(session.language, "judged", count=len(images))
        if left_out:
            message += " " + text(session.language, "left_out", count=left_out, limit=SEEN)
        return self._bounded(session, message)

    def _judge(self, classes: str, rate: str, request: gr.Request) -> list[Any]:
        session = self._session(request)

        def act() -> str:
            session.set_classes(classes)
            return text(session.language, "changed", classes=len(session.guard.classes))

        message, wrong = self._attempt(session, act)
        shown = classes if wrong else as_text(session.guard.class_set.classes)
        return [*self._bounded(session, message, wrong), shown, self._progress(session, rate)]

    def _slide(self, value: float, request: gr.Request) -> list[Any]:
        session = self._session(request)

        def act() -> str:
            session.set_threshold(float(value))
            return ""

        return self._view(session, *self._attempt(session, act))

    def _own(self, request: gr.Request) -> list[Any]:
        session = self._session(request)
        session.own_threshold()
        return self._bounded(session)

    def _sort(self, order: Any, request: gr.Request) -> list[Any]:
        session = self._session(request)
        session.order = order if order in ORDERS else "unknown"
        return self._view(session)

    def _clear(self, request: gr.Request) -> list[Any]:
        session = self._session(request)
        session.clear()
        return self._bounded(session)

    def _calibrate(self, tickets: str, rate: str, request: gr.Request) -> list[Any]:
        session, images = self._session(request), self.pending.take(tickets)

        def act() -> str:
            session.calibrate(images, share(rate))
            return ""

        return [*self._bounded(session, *self._attempt(session, act)), self._progress(session, rate)]

    def _rate(self, rate: str, request: gr.Request) -> list[Any]:
        return self._calibrate("", rate, request)

    def _progress(self, session: Session, rate: str) -> str:
        """How far a calibration is."""
        needed, count = images_needed(share(rate)), session.counted
        about: dict[str, Any] = {"rate": rate, "needed": needed, "count": count, "missing": needed - count}
        if session.guard.calibrated is not None and session.guard.threshold is not None:
            about["count"] = len(session.guard.calibrated.calibration.scores)
            about["threshold"] = number(session.guard.threshold.value)
            if (evidence := session.guard.judge.evidence) is not None:
                about["rate"] = f"{100 * evidence.wanted.false_alarm_rate:g} %"
            key = "calibrated"
        else:
            key = "calibrate_more" if count else "calibrate_none"
        return html.hint(text(session.language, key, **about))

    def _publish(self, token: str, request: gr.Request) -> list[Any]:
        session = self._session(request)
        done = False

        def act() -> str:
            nonlocal done
            done = session.publish(token, self.admin_token)
            return text(session.language, "published", version=session.version) if done else ""

        message, wrong = self._attempt(session, act)
        if not done and not wrong:
            message, wrong = text(session.language, "wrong_token"), True
        return [html.status(message, wrong), ""]

    def _search(self, query: str, request: gr.Request) -> list[Any]:
        session, index = self._session(request), self.service.index
        shown = ""

        def act() -> str:
            nonlocal shown
            hits = session.search(query)
            thumbnails = [index.thumbnail(hit.id) if index else None for hit in hits]
            shown = html.found(session.language, hits, thumbnails)
            return ""

        message, wrong = self._attempt(session, act)
        return [html.status(message, wrong), shown]


@dataclass(frozen=True)
class Say:
    """The texts of one language."""

    language: str

    def __call__(self, key: str) -> str:
        """One of them."""
        return text(self.language, key)


def share(rate: str) -> float:
    """``5 %`` -> 0.05; what is no rate of the page is its default."""
    return int(rate.split()[0]) / 100 if rate in RATES else 0.05


def slider(session: Session) -> Any:
    """The threshold from below the least to above the greatest score seen, as far as the detector can reach.

    It shows few digits, and the session keeps them all: nothing is decided by what is shown until somebody moves it.
    """
    threshold = session.guard.threshold
    values = [one.ood_score for _, one in session.verdicts() if one.ood_score is not None]
    if threshold is not None:
        values.append(threshold.value)
    if len(values) < 2:
        return gr.update(interactive=False)
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5
    step = 10.0 ** math.floor(math.log10((high - low + 2 * room) / 100))
    start, end = step * math.floor((low - room) / step), step * math.ceil((high + room) / step)
    least, most = session.guard.detector.score_range()  # a threshold beyond them would decide nothing
    start = max(start, least)
    if end >= most:
        end = most - step / 10
    value = threshold.value if threshold is not None else (low + high) / 2
    shown = float(f"{value:.{DIGITS}g}")
    return gr.update(minimum=round(start, 9), maximum=round(end, 9), step=step / 10, value=shown, interactive=True)
