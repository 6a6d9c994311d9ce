"""Drift of what clients send: alarms, gauges, versions, threads, and what strangers do not learn."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time

import pytest
from conftest import BLUE, GREEN, RED, calibrated, encoded, picture, within

pytest.importorskip("fastapi")
from serving import ADMIN, PICTURES, client, files, setting

from outclass.serve.drift import WAITING

USUAL = [("red.png", PICTURES["red.png"]), ("blue.png", PICTURES["blue.png"])]
SECRET = "my holiday in june.png"
STRANGE = (SECRET, PICTURES["green.png"])


@pytest.fixture
def guard(monkeypatch):
    """A calibrated guard that knows red and blue."""
    return calibrated(monkeypatch)


@pytest.fixture
def session(guard):
    with client(guard) as opened:
        yield opened


def check(session, *pictures):
    said = session.post("/v1/check", files=files(*pictures))
    assert said.status_code == 200
    return said.json()


def state(session, headers=None):
    said = session.get("/v1/drift", headers=headers or {})
    assert said.status_code == 200
    return said.json()


def gauges(session):
    """Name -> value of the gauges of drift."""
    found = re.findall(r"^outclass_((?:drift|ood_rate)\S*) (\S+)$", session.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def shades(n):
    """Images like those of the calibration."""
    return [(f"{row}.png", encoded(picture(tuple(one + row % 7 for one in (RED, BLUE)[row % 2])))) for row in range(n)]


def test_usual_images_raise_no_alarm_and_strange_ones_do(session, caplog):
    caplog.set_level(logging.INFO, "outclass")
    check(session, *shades(60))
    before = state(session)
    assert (before["images"], before["drift"]["alarm"]) == (60, False)
    assert before["ood_rate"] < 0.2
    quiet = gauges(session)
    assert quiet['drift_alarm{test="martingale"}'] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for _ in range(2):
        check(session, *[STRANGE] * 20)
    after = state(session)
    assert (after["images"], after["ood"]) == (100, before["ood"] + 40)
    assert 60 < after["drift"]["alarm_image"] <= 90
    assert after["interval"][0] < after["ood_rate"] < after["interval"][1]
    loud = gauges(session)
    assert loud['drift_alarm{test="martingale"}'] == 1
    assert loud["drift_log10_capital"] > 2 > quiet["drift_log10_capital"]
    assert loud["drift_cusum"] > loud["drift_cusum_limit"] > quiet["drift_cusum"]
    assert loud["ood_rate"] == pytest.approx(after["ood_rate"])
    assert loud["ood_rate_low"] < loud["ood_rate"] < loud["ood_rate_high"]
    (line,) = [record for record in caplog.records if record.message.startswith(f"version {after['version']}: drift:")]
    assert line.levelno == logging.WARNING
    assert f"at image {after['drift']['alarm_image']}" in line.message
    assert "nearest of the known classes: " in line.message
    assert SECRET not in caplog.text, "a log holds no client's name of a file"


def test_unread_images_and_an_empty_service_count_for_nothing(session):
    empty = state(session)
    assert (empty["images"], empty["ood_rate"], empty["interval"], empty["drift"]["alarm"]) == (0, None, None, False)
    assert "ood_rate" not in gauges(session)
    check(session, ("x", b"broken"), USUAL[0])
    assert session.get("/readyz").json()["ready"], "the picture that it scores is no client's"
    session.post("/v1/classify", files=files(STRANGE))
    now = state(session)
    assert (now["images"], now["failed"], now["ood"]) == (1, 1, 0)


def test_without_a_calibration_there_is_the_rate_alone_with_the_reason():
    with client() as session:
        check(session, *USUAL, STRANGE)
        now = state(session)
        assert (now["ood_rate"], now["drift"]) == (pytest.approx(1 / 3), None)
        assert "outclass calibrate" in now["no_drift"]
        found = gauges(session)
    assert found["ood_rate"] == pytest.approx(1 / 3)
    assert not [name for name in found if "capital" in name or "alarm" in name or "cusum" in name]


def test_strangers_learn_no_id_and_nothing_of_single_images(session):
    check(session, *[STRANGE] * 5)
    said = session.get("/v1/drift")
    assert said.json()["new"] is None
    assert SECRET not in said.text + session.get("/metrics").text
    behind_a_login = session.get("/v1/drift", headers={"Authorization": "Basic bWU6c2VjcmV0"})
    assert (behind_a_login.status_code, behind_a_login.json()["new"]) == (200, None)
    wrong = session.get("/v1/drift", headers={"Authorization": "Bearer x"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "unauthorised")
    new = state(session, ADMIN)["new"]
    assert (new["ood"], new["most_ood"][0]["id"]) == (5, SECRET)


def test_only_the_token_restarts(session):
    check(session, *[STRANGE] * 40)
    assert state(session)["drift"]["alarm"]
    for headers, status in (({}, 401), ({"Authorization": "Bearer x"}, 401)):
        assert session.post("/v1/drift/restart", headers=headers).status_code == status
    assert state(session)["images"] == 40
    before = time.time()
    said = session.post("/v1/drift/restart", headers=ADMIN)
    assert said.status_code == 200
    assert (said.json()["images"], said.json()["drift"]["alarm"], said.json()["new"]["ood"]) == (0, False, 0)
    assert before - 1 < said.json()["since"] < time.time() + 1
    assert state(session)["images"] == 0


def test_a_server_without_a_token_has_no_admin(guard):
    with client(guard, token=None) as session:
        assert session.post("/v1/drift/restart", headers=ADMIN).json()["code"] == "read_only"
        assert session.get("/v1/drift", headers=ADMIN).json()["code"] == "read_only"
        assert session.get("/v1/drift").status_code == 200


def test_a_changed_guard_begins_anew_and_what_the_old_one_says_later_is_left_out(session, caplog):
    caplog.set_level(logging.INFO, "outclass")
    service = session.setting.service
    check(session, *[STRANGE] * 30)
    first = state(session)
    old = service.served
    late = list(old.judge.verdicts(_features(service, "late.png")))
    changed = session.put("/v1/classes", json={"classes": ["red", "blue", "green"]}, headers=ADMIN).json()
    now = state(session)
    assert now["version"] == changed["version"] != first["version"]
    assert (now["images"], now["since"]) == (0, service.served.since)
    assert not (now["drift"] or {}).get("alarm")
    assert f"begun anew for version {now['version']}" in caplog.text
    service.drift.add(old.version, late)
    check(session, STRANGE)
    assert (state(session)["images"], state(session)["ood"]) == (1, 0), "the new guard knows green"


def test_a_change_that_leaves_the_version_goes_on(session):
    check(session, *USUAL)
    for classes in (["red", "blue", "green"], ["red", "blue"]):
        session.put("/v1/classes", json={"classes": classes}, headers=ADMIN)
    check(session, *USUAL)
    assert state(session)["images"] == 4, "equal versions, equal verdicts"


def _features(service, id_):
    from outclass.records import Features

    vectors = service.served.guard.encoder.encode_images(service.batcher.reader.one(picture(GREEN))[None])
    return Features((id_,), (None,), vectors)


def test_threads_at_once_lose_no_verdict(guard):
    made = setting(guard)
    served = made.service.served
    verdicts = list(served.judge.verdicts(_features(made.service, "a.png")))
    rounds = WAITING // 4

    def send():
        for _ in range(rounds):
            made.service.drift.add(served.version, verdicts)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for one in threads:
        one.start()
    seen = [made.service.drift.state()["images"] for _ in range(30)]
    for one in threads:
        one.join()
    assert seen == sorted(seen)
    assert made.service.drift.state()["images"] == 8 * rounds
    assert not made.service.drift._waiting


def test_what_waits_is_bounded_and_taken_at_the_end(guard, caplog):
    made = setting(guard)
    drift, served = made.service.drift, made.service.served
    drift.state()
    within(60, drift.close)  # no thread takes anything any more
    verdicts = list(served.judge.verdicts(_features(made.service, "a.png")))
    for _ in range(WAITING):
        drift.add(served.version, verdicts)
    assert len(drift._waiting) == WAITING
    assert not drift.behind
    drift.add(served.version, verdicts)
    assert drift.behind
    drift.catch_up()
    assert not drift._waiting, "the sender helps"
    drift.add(served.version, verdicts)
    made.service.close(60)
    assert drift._monitor.images == WAITING + 2
    assert "drift: at image" in caplog.text


def test_one_that_remembers_no_more_begins_anew_unless_it_has_an_alarm(guard, monkeypatch):
    monkeypatch.setattr("outclass.decide.martingale.MOST", 6)
    with client(guard) as session:
        check(session, *shades(6))
        check(session, *USUAL)
        assert (state(session)["images"], state(session)["drift"]["full"]) == (2, False)
    monkeypatch.setattr("outclass.decide.martingale.MOST", 30)
    with client(guard) as session:
        for _ in range(2):
            check(session, *[STRANGE] * 30)
        assert state(session)["images"] == 60
        assert state(session)["drift"]["alarm"], "an alarm stays until somebody has seen it"


@contextlib.contextmanager
def held(lock):
    """Another thread has the lock, for as long as the block."""
    free, locked = threading.Event(), threading.Event()

    def hold():
        with lock:
            locked.set()
            free.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    locked.wait(30)
    try:
        yield
    finally:
        free.set()
        holding.join()


def test_an_answer_waits_for_no_monitor(session):
    with held(session.setting.service.drift._lock):
        said = within(20, lambda: check(session, *USUAL))
        assert len(said["verdicts"]) == 2
    assert state(session)["images"] == 2


def test_a_sender_that_helps_keeps_nobody_else_waiting(session, monkeypatch):
    monkeypatch.setattr("outclass.serve.drift.WAITING", 0)
    drift = session.setting.service.drift
    sending = threading.Thread(target=check, args=(session, *USUAL))
    with held(drift._lock):
        sending.start()
        until = time.monotonic() + 20
        while not drift.behind:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert within(60, lambda: session.get("/healthz")).status_code == 200
        assert sending.is_alive(), "it brought one too many"
    sending.join()
    assert state(session)["images"] == 2


def test_a_follower_that_fails_goes_on(guard, caplog, monkeypatch):
    made = setting(guard)
    drift, served = made.service.drift, made.service.served
    real = drift.catch_up
    monkeypatch.setattr(drift, "catch_up", lambda: 1 / 0)
    drift.add(served.version, [])
    until = time.monotonic() + 60
    while "following the verdicts failed" not in caplog.text:
        assert time.monotonic() < until
        time.sleep(0.01)
    monkeypatch.setattr(drift, "catch_up", real)
    drift.add(served.version, list(served.judge.verdicts(_features(made.service, "a.png"))))
    while not (drift._monitor and drift._monitor.images):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_document_shows_an_example_that_fits_its_own_schema(session):
    from outclass.serve.models import DRIFT, DriftOut

    assert DriftOut(**DRIFT).model_dump(exclude={"new"}) == {key: DRIFT[key] for key in DRIFT if key != "new"}
    check(session, *[STRANGE] * 30)
    DriftOut(**state(session, ADMIN))
    shown = session.get("/openapi.json").json()
    assert shown["components"]["schemas"]["DriftOut"]["example"] == json.loads(json.dumps(DRIFT))
    assert shown["paths"]["/v1/drift/restart"]["post"]["security"] == [{"admin": []}]
