"""Changing the served classes: whole or not at all, in versions, by those who may, on disk when asked."""

from __future__ import annotations

import threading

import pytest
from conftest import calibrated, save_picture

pytest.importorskip("fastapi")
from serving import ADMIN, PICTURES, TOKEN, SlowEncoder, client, files, setting

from outclass import Guard
from outclass.serve import api as api_module

GREEN = files(("green.png", PICTURES["green.png"]))
NAMES = "classes.txt"


def names(said):
    return [one["name"] for one in said.json()["classes"]]


def green_is_ood(session):
    said = session.post("/v1/check", files=GREEN).json()
    return said["verdicts"][0]["is_ood"], said["version"]


def test_a_new_class_is_known_to_the_next_request_and_a_removed_one_is_not():
    with client() as session:
        assert green_is_ood(session) == (True, session.get("/v1/classes").json()["version"])
        said = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN)
        assert names(said) == ["red", "blue", "green"]
        assert green_is_ood(session) == (False, said.json()["version"])
        said = session.delete("/v1/classes?name=GREEN&name=red", headers=ADMIN)
        assert names(said) == ["blue"]
        assert green_is_ood(session) == (True, said.json()["version"])
        said = session.put("/v1/classes", json={"classes": [{"name": "leaf", "synonyms": ["green"]}]}, headers=ADMIN)
        assert said.json()["classes"] == [{"name": "leaf", "synonyms": ["green"], "attributes": []}]
        assert session.setting.guard.classes == ("red", "blue")  # the caller's own guard stays as it was


def test_versions_tell_guards_apart_and_come_back_with_them():
    with client() as session:
        first = session.get("/v1/classes")
        assert first.headers["etag"] == f'"{first.json()["version"]}"'
        same = session.put("/v1/classes", json={"classes": ["blue", "red"]}, headers=ADMIN)
        assert same.json()["version"] == first.json()["version"]
        more = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN).json()["version"]
        back = session.delete("/v1/classes?name=green", headers=ADMIN).json()["version"]
    assert more != first.json()["version"] == back
    assert setting().service.served.version == back  # another process, the same guard
    assert setting(Guard(["red", "blue"], "toy", threshold=-0.8)).service.served.version != back


def test_a_change_that_was_meant_for_another_version_changes_nothing():
    with client() as session:
        tag = session.get("/v1/classes").headers["etag"]
        assert (
            session.post("/v1/classes", json={"classes": ["a"]}, headers=ADMIN | {"If-Match": tag}).status_code == 200
        )
        late = session.post("/v1/classes", json={"classes": ["b"]}, headers=ADMIN | {"If-Match": tag})
        assert (late.status_code, late.json()["code"]) == (412, "version")
        assert names(session.get("/v1/classes")) == ["red", "blue", "a"]
        assert session.delete("/v1/classes?name=a", headers=ADMIN | {"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer é"]
)
def test_only_the_token_lets_in(given):
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with client() as session:
        for method, path in (("PUT", "/v1/classes"), ("POST", "/v1/classes"), ("DELETE", "/v1/classes?name=red")):
            said = session.request(
                method, path, headers=headers, json={"classes": ["x"]} if method != "DELETE" else None
            )
            assert said.status_code == 401
            assert said.headers["www-authenticate"] == "Bearer"
        assert names(session.get("/v1/classes")) == ["red", "blue"]


def test_without_a_token_everything_can_be_read_and_nothing_changed():
    with client(token=None) as session:
        for headers in ({}, ADMIN, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
            assert session.put("/v1/classes", json={"classes": ["x"]}, headers=headers).status_code == 403
        assert session.get("/v1/guard").json()["writable"] is False
        assert names(session.get("/v1/classes")) == ["red", "blue"]


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    real = api_module.hmac.compare_digest
    monkeypatch.setattr(api_module.hmac, "compare_digest", lambda *two: compared.append(two) or real(*two))
    with client() as session:
        session.put("/v1/classes", json={"classes": ["x"]}, headers={"Authorization": "Bearer a"})
    ((given, wanted),) = compared
    assert len(given) == len(wanted) == 32


BAD = {
    "newline": "a\nb", "null": "a\0b", "escape": "\x1b[31mred", "line separator": "a\u2028b",
    "right to left": "\u202eder", "empty": " ", "long": "x" * 101,
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["plain", "name", "synonym", "attribute"])
def test_names_that_could_fool_somebody_are_refused(bad, where):
    word = BAD[bad]
    one = {
        "plain": word,
        "name": {"name": word},
        "synonym": {"name": "ok", "synonyms": [word]},
        "attribute": {"name": "ok", "attributes": ["x", word]},
    }[where]
    with client() as session:
        said = session.post("/v1/classes", json={"classes": ["fine", one]}, headers=ADMIN)
        assert (said.status_code, said.json()["code"]) == (422, "invalid")
        assert not any(letter in said.json()["detail"] for letter in "\n\0\x1b\u2028\u202e")
        assert names(session.get("/v1/classes")) == ["red", "blue"]


def test_there_is_a_limit_to_classes_and_to_their_words():
    with client(classes=4) as session:
        assert session.post("/v1/classes", json={"classes": ["a", "b", "c"]}, headers=ADMIN).status_code == 422
        assert session.put("/v1/classes", json={"classes": list("abcde")}, headers=ADMIN).status_code == 422
        assert names(session.get("/v1/classes")) == ["red", "blue"]
        assert session.post("/v1/classes", json={"classes": ["a", "b"]}, headers=ADMIN).status_code == 200
        many = {"name": "c", "synonyms": [f"s{row}" for row in range(17)]}
        assert session.put("/v1/classes", json={"classes": [many]}, headers=ADMIN).status_code == 422


def test_a_name_is_never_a_path(tmp_path, monkeypatch):
    (tmp_path / NAMES).write_text("secret one\nsecret two\n")
    save_picture(tmp_path / "folder" / "secret three" / "x.png")
    monkeypatch.chdir(tmp_path)
    wanted = [NAMES, "folder", str(tmp_path / NAMES), "a,b", "cat | lion"]
    with client(name_length=500) as session:
        said = session.put("/v1/classes", json={"classes": wanted}, headers=ADMIN)
        assert names(said) == wanted


def test_changes_are_on_disk_before_anybody_sees_them(tmp_path):
    file = tmp_path / "served.guard"
    with client(save=file) as session:
        session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN)
        assert Guard.load(file).classes == ("red", "blue", "green")
        version = session.get("/v1/classes").json()["version"]
    assert setting(Guard.load(file)).service.served.version == version


def test_a_change_that_cannot_be_written_is_no_change(tmp_path):
    (tmp_path / "folder").mkdir()
    with client(save=tmp_path / "folder") as session:
        said = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN)
        assert said.status_code == 503
        assert str(tmp_path) not in said.text
        assert green_is_ood(session)[0] is True
        assert names(session.get("/v1/classes")) == ["red", "blue"]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_calibrated_guard_is_calibrated_again(monkeypatch):
    with client(calibrated(monkeypatch)) as session:
        said = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN).json()
        assert said["calibrated"] is True
        verdict = session.post("/v1/check", files=GREEN).json()["verdicts"][0]
        assert (verdict["threshold_source"], verdict["p_value"] is None) == ("calibrated", False)


def test_a_detector_that_learned_for_its_classes_alone_refuses_others(tmp_path):
    for name, colour in (("red", (220, 30, 30)), ("blue", (40, 60, 220))):
        for row in range(12):
            save_picture(tmp_path / name / f"{row}.png", tuple(min(255, value + 3 * row) for value in colour))
    guard = Guard(["red", "blue"], "toy")
    guard.fit(tmp_path, "tip", hold_out=0)
    with client(guard) as session:
        before = session.get("/v1/classes").json()
        said = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN)
        assert (said.status_code, said.json()["code"]) == (409, "conflict")
        assert session.get("/v1/classes").json() == before
        assert session.post("/v1/check", files=GREEN).status_code == 200


def test_every_answer_is_of_one_version_while_classes_change():
    with client() as session:
        done, wrong = threading.Event(), []

        def ask():
            while not done.is_set():
                said = session.post("/v1/check", files=GREEN * 5).json()
                decisions = {one["is_ood"] for one in said["verdicts"]}
                versions = {one["version"] for one in said["verdicts"]} | {said["version"]}
                if len(versions) != 1 or decisions != {known[said["version"]]}:
                    wrong.append(said)

        first = session.get("/v1/classes").json()["version"]
        other = session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN).json()["version"]
        known = {first: True, other: False}
        askers = [threading.Thread(target=ask) for _ in range(4)]
        for one in askers:
            one.start()
        for _ in range(15):
            assert session.delete("/v1/classes?name=green", headers=ADMIN).status_code == 200
            assert session.post("/v1/classes", json={"classes": ["green"]}, headers=ADMIN).status_code == 200
        done.set()
        for one in askers:
            one.join(30)
        assert wrong == []


def test_a_session_has_a_guard_of_its_own():
    made = setting()
    mine = made.service.session_guard()
    mine.add_classes(["green"])
    assert mine.encoder is made.service.served.guard.encoder
    assert made.service.served.guard.classes == ("red", "blue")
    made.service.close()


def test_setting_classes_encodes_the_texts_of_new_ones_alone():
    slow = SlowEncoder()
    guard = Guard(["red", "blue"], slow, threshold=-0.9)
    asked = []
    slow.encode_texts = lambda texts: asked.extend(texts) or slow.toy.encode_texts(texts)
    guard.set_classes(["green", "blue"])
    assert guard.classes == ("blue", "green")
    assert asked == ["a photo of a green"]
    assert guard.check(PICTURES["green.png"]).label == "green"
    judge = guard.judge
    guard.set_classes(["green", "blue"])
    assert guard.judge is judge
