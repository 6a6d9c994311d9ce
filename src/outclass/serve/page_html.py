"""The parts of the page that are ours: cards, histogram, drop zones, as HTML. All that comes from people is escaped."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape

import numpy as np

from outclass.records import Rows, Verdict
from outclass.report.canvas import DARK, LIGHT, Canvas, visible
from outclass.report.histogram import histogram
from outclass.report.page import data_uri, number, short
from outclass.serve.page_session import Seen
from outclass.serve.words import text

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 344, 150, 8, 24, 26  # of the histogram, CSS pixels
NEWS = itertools.count()
KIND = {True: "ood", False: "id", None: "open"}


def shown(words: str | None, length: int = 64) -> str:
    """Words of people for the page: what cannot be seen in them made visible, cut, escaped."""
    return escape(short(visible(words or ""), length))


def colours() -> str:
    """CSS variables of the reports' colours, light and dark."""
    light = "".join(f"--{name}:{colour};" for name, colour in LIGHT.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in DARK.items())
    return f":root{{{light}}}.dark{{{dark}}}"


def header(language: str) -> str:
    """The page's head."""
    name = escape(text(language, "appearance"))
    return (
        f'<header class="oc-head" lang="{language}"><h1>outclass <button type="button" class="oc-plain" '
        f'data-oc="appearance" aria-label="{name}" title="{name}">◐</button></h1>'
        f"<p>{escape(text(language, 'lead'))}</p></header>"
    )


def zone(language: str, target: str, limit: int, camera: bool = False) -> str:
    """A place to drop images on; the script of the page sends them and hands their ticket to ``target``."""

    def say(key: str, **values: object) -> str:
        return escape(text(language, key, **values))

    what = "drop" if target == "oc-check" else "calibrate_drop"
    messages = "".join(
        f' data-{key.replace("_", "-")}="{say(key)}"' for key in ("sending", "too_many", "unreachable", "no_camera")
    )
    parts = [
        f'<div class="oc-zone" data-target="{target}" data-limit="{limit}"{messages}>',
        f'<input type="file" id="{target}-files" multiple accept="image/*">',
        f'<label for="{target}-files"><b>{say(what)}</b>',
        f"<span>{say('drop_hint', limit=limit)}</span></label>" if camera else "</label>",
    ]
    if camera:
        parts.append(
            f'<button type="button" class="oc-plain" data-oc="camera">{say("camera")}</button>'
            '<div class="oc-camera" hidden><video playsinline muted></video>'
            f'<button type="button" class="oc-plain" data-oc="shoot">{say("shoot")}</button> '
            f'<button type="button" class="oc-plain" data-oc="close">{say("close")}</button></div>'
        )
    return "".join([*parts, '<p class="oc-sending" role="status"></p></div>'])


def status(message: str, wrong: bool = False) -> str:
    """What was just done, read out by screen readers; numbered, so that the same words are news to a browser."""
    kind = f"oc-status{' oc-wrong' * wrong}"
    said = escape(visible(message))
    return f'<p class="{kind}" role="status" aria-live="polite" data-number="{next(NEWS)}">{said}</p>'


def hint(words: str) -> str:
    """A sentence of help."""
    return f'<p class="oc-hint">{escape(words)}</p>'


def foot(language: str, version: str, encoder: str, detector: str) -> str:
    """The page's foot."""
    serves = text(language, "serves", version=version, encoder=encoder, detector=detector)
    return f'<footer class="oc-foot"><p>{escape(serves)}</p><p>{escape(text(language, "foot"))}</p></footer>'


def summary(language: str, verdicts: Sequence[Verdict], csv: bytes) -> str:
    """How many of which, and the CSV file."""
    if not verdicts:
        return ""
    failed = sum(one.error is not None for one in verdicts)
    counts = {kind: sum(one.is_ood is kind and one.error is None for one in verdicts) for kind in KIND}
    key = "counts_undecided" if counts[None] else "counts"
    said = text(language, key, images=len(verdicts), known=counts[False], unknown=counts[True])
    said += text(language, "counts_failed", failed=failed) if failed else ""
    data = base64.b64encode(csv).decode("ascii")
    link = f'<a class="oc-plain" download="verdicts.csv" href="data:text/csv;charset=utf-8;base64,{data}">'
    return f'<div class="oc-summary"><h2>{escape(said)}</h2>{link}{escape(text(language, "download"))}</a></div>'


def cards(language: str, pairs: Sequence[tuple[Seen, Verdict]]) -> str:
    """A card for every image, in the order given."""
    if not pairs:
        return (
            f'<div class="oc-empty"><p><b>{escape(text(language, "empty"))}</b></p>'
            f"<p>{escape(text(language, 'empty_hint'))}</p></div>"
        )
    scores = [one.ood_score for _, one in pairs if one.ood_score is not None and np.isfinite(one.ood_score)]
    limits = [one.threshold for _, one in pairs if one.threshold is not None]
    low, high = min([*scores, *limits], default=0.0), max([*scores, *limits], default=1.0)
    margin = 0.06 * (high - low) or 0.5
    span = low - margin, high + margin
    return f'<ul class="oc-cards">{"".join(_card(language, seen, verdict, span) for seen, verdict in pairs)}</ul>'


def found(language: str, hits: Rows, thumbnails: Sequence[bytes | None]) -> str:
    """Images of the index, with what the session's guard says of them."""
    items = []
    for hit, jpeg in zip(hits, thumbnails, strict=True):
        verdict = hit.verdict or Verdict(hit.id)
        items.append(
            f'<li class="oc-card">{_picture(language, jpeg, hit.id)}<div class="oc-text">'
            f"{_headline(language, verdict) if hit.verdict else ''}"
            f"<dl>{_row(text(language, 'similarity'), number(hit.similarity, 3))}</dl>{_name(hit.id)}</div></li>"
        )
    head = escape(text(language, "found", count=len(items)))
    return f'<h3 class="oc-found">{head}</h3><ul class="oc-cards">{"".join(items)}</ul>'


def chart(language: str, verdicts: Sequence[Verdict], threshold: float | None) -> str:
    """The histogram of the scores, the threshold drawn in it."""
    read = [one for one in verdicts if one.ood_score is not None]
    scores = np.array([one.ood_score for one in read], np.float32)
    is_ood = np.array([one.is_ood is True for one in read], np.bool_)
    drawn = histogram(scores, is_ood, threshold)
    if drawn is None:
        return hint(text(language, "no_scores"))
    unknown, known = int(is_ood.sum()), sum(one.is_ood is False for one in read)
    about = text(language, "chart_none")
    if threshold is not None:
        about = text(language, "chart_at", known=known, unknown=unknown, threshold=number(threshold))
    canvas = Canvas(WIDTH, HEIGHT, text(language, "chart", count=len(read)), about)
    wide, high, floor = WIDTH - 2 * LEFT, HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    for bar in drawn.bars:
        left, width = LEFT + wide * bar.left / 100, max(1.0, wide * bar.width / 100 - 1)
        below, above = high * bar.below_height / 100, high * bar.above_height / 100
        if bar.below:
            canvas.box(left, floor - below, width, below, "id" if threshold is not None else "plain")
        if bar.above:
            canvas.box(left, floor - below - above, width, above, "ood", hatched=True)
    canvas.line([(LEFT, floor), (WIDTH - LEFT, floor)], "soft")
    ticks = [tick for tick in drawn.x_ticks if 4 <= tick.at <= 96]
    for tick in ticks[:: max(1, -(-len(ticks) // 6))]:
        canvas.text(LEFT + wide * tick.at / 100, floor + 13, tick.text, "soft", 12, "middle")
    if drawn.threshold_at is not None:
        at = LEFT + wide * drawn.threshold_at / 100
        canvas.line([(at, TOP - 8), (at, floor)], "ink", 1.5, (5, 3))
        if drawn.threshold_at > 18:
            canvas.text(at - 6, TOP - 14, f"← {text(language, 'known_axis')}", "id", 12, "end")
        if drawn.threshold_at < 82:
            canvas.text(at + 6, TOP - 14, f"{text(language, 'unknown_axis')} →", "ood", 12)
    return f'<figure class="oc-chart">{canvas.to_svg("oc-chart")}</figure>'


def _card(language: str, seen: Seen, verdict: Verdict, span: tuple[float, float]) -> str:
    if verdict.error is not None:
        return (
            f'<li class="oc-card">{_picture(language, None, seen.name)}<div class="oc-text"><p class="oc-what">'
            f'<span class="oc-chip oc-open">{escape(text(language, "failed"))}</span></p>'
            f'<p class="oc-why">{shown(verdict.error, 300)}</p>{_name(seen.name)}</div></li>'
        )
    rows = [_row(text(language, "score"), number(verdict.ood_score, 3))]
    if verdict.threshold is not None:
        rows.append(_row(text(language, "against"), number(verdict.threshold, 3)))
    if verdict.p_value is not None:
        rows.append(_row(text(language, "p"), number(verdict.p_value, 3)))
    if verdict.is_ood and verdict.label is not None:
        rows.append(_row(text(language, "nearest"), verdict.label))
    if verdict.is_ood is None and verdict.nearest_negative is not None:
        rows.append(_row(text(language, "looks"), verdict.nearest_negative))
    return (
        f'<li class="oc-card">{_picture(language, seen.thumbnail, seen.name)}<div class="oc-text">'
        f"{_headline(language, verdict)}{_bar(language, verdict, span)}<dl>{''.join(rows)}</dl>"
        f"{_name(seen.name)}</div></li>"
    )


def _headline(language: str, verdict: Verdict) -> str:
    """Known and its class; unknown and what it looks like; else the nearest class."""
    word = {True: "unknown", False: "known", None: "undecided"}[verdict.is_ood]
    main = verdict.label
    if verdict.is_ood:
        main = f"{text(language, 'looks')} {verdict.nearest_negative}" if verdict.nearest_negative else None
    chip = f'<span class="oc-chip oc-{KIND[verdict.is_ood]}">{escape(text(language, word))}</span>'
    return f'<p class="oc-what">{chip}' + (f'<b dir="auto">{shown(main)}</b></p>' if main else "</p>")


def _bar(language: str, verdict: Verdict, span: tuple[float, float]) -> str:
    """The score as a mark on a line from known to unknown, the threshold as a stroke across it."""
    if verdict.ood_score is None or not np.isfinite(verdict.ood_score):
        return ""

    def at(value: float) -> str:
        return f"{min(100.0, max(0.0, 100 * (value - span[0]) / (span[1] - span[0]))):.2f}%"

    score, place = number(verdict.ood_score, 3), at(verdict.ood_score)
    if verdict.threshold is None:
        said, limit = text(language, "bar_none", score=score), ""
    else:
        word = text(language, "unknown" if verdict.is_ood else "known")
        said = text(language, "bar", score=score, threshold=number(verdict.threshold, 3), verdict=word)
        cut = at(verdict.threshold)
        limit = (
            f'<rect class="oc-below" x="0" y="5" width="{cut}" height="4" rx="2"/>'
            f'<rect class="oc-above" x="{cut}" y="5" width="{100 - float(cut[:-1]):.2f}%" height="4" rx="2"/>'
            f'<line class="oc-limit" x1="{cut}" x2="{cut}" y1="0" y2="14"/>'
        )
    return (
        f'<svg class="oc-bar" role="img" aria-label="{escape(said)}"><rect class="oc-track" x="0" y="5" width="100%" '
        f'height="4" rx="2"/>{limit}<circle class="oc-mark oc-{KIND[verdict.is_ood]}" cx="{place}" cy="7" r="5"/></svg>'
    )


def _picture(language: str, jpeg: bytes | None, name: str) -> str:
    address = data_uri(jpeg)
    if address is None:
        return f'<div class="oc-picture"><span>{escape(text(language, "no_picture"))}</span></div>'
    return f'<div class="oc-picture"><img src="{address}" alt="{shown(name)}"></div>'


def _row(name: str, value: str) -> str:
    return f'<div><dt>{escape(name)}</dt><dd dir="auto">{shown(value)}</dd></div>'


def _name(name: str) -> str:
    return f'<bdi class="oc-name" title="{shown(name, 500)}">{shown(name)}</bdi>'
