"""The routes: verdicts are those of the library, errors are problems, and the document tells the truth."""

from __future__ import annotations

import base64
import csv
import json
import subprocess
import sys

import pytest
from conftest import BLUE, GREEN, RED, ROOT, calibrated, encoded, noisy_picture, save_picture

pytest.importorskip("fastapi")
from serving import ADMIN, CONFUSED, PICTURES, as_json, client, files, same_verdict, sha256

from outclass import Guard
from outclass.images.decode import MAX_PIXELS
from outclass.serve.problems import KINDS

ALL = list(PICTURES.items())


@pytest.fixture(scope="module")
def api():
    with client() as session:
        yield session


@pytest.mark.parametrize("how", ["multipart", "json"])
def test_verdicts_are_those_of_the_guard_in_order_with_hash_and_version(api, how):
    body = {"files": files(*ALL)} if how == "multipart" else {"json": as_json(*ALL)}
    said = api.post("/v1/check", **body)
    assert said.status_code == 200
    version, verdicts = said.json()["version"], said.json()["verdicts"]
    assert [one["id"] for one in verdicts] == list(PICTURES)
    for one in verdicts:
        same_verdict(one, api.setting.guard.check(PICTURES[one["id"]]))
        assert one["sha256"] == sha256(PICTURES[one["id"]])
        assert one["version"] == version == api.setting.service.served.version


def test_what_is_unknown_has_the_higher_score_and_is_ood(api):
    red, green, _ = api.post("/v1/check", files=files(*ALL)).json()["verdicts"]
    assert green["ood_score"] > green["threshold"] > red["ood_score"]
    assert (red["is_ood"], green["is_ood"]) == (False, True)


def test_an_image_that_cannot_be_read_is_a_verdict_and_disturbs_no_other(api):
    said = api.post(
        "/v1/check", files=files(("a", PICTURES["red.png"]), ("b", b"no image"), ("c", PICTURES["blue.png"]))
    )
    assert said.status_code == 200
    first, bad, last = said.json()["verdicts"]
    assert [first["label"], bad["label"], last["label"]] == ["red", None, "blue"]
    assert bad["error"]
    assert bad["sha256"] == sha256(b"no image")
    assert {value for name, value in bad.items() if name not in ("id", "error", "sha256", "version")} == {None}


def test_the_broken_set_fails_image_by_image_as_in_a_scan(dev):
    with open(dev / "broken" / "EXPECTED.csv", encoding="utf-8", newline="") as file:
        wanted = {row["file"]: row["pillow_result"].startswith("decodes") for row in csv.DictReader(file)}
    guard = Guard(["red", "blue"], encoder="toy", threshold=-0.9)
    names = sorted(wanted)
    with client(guard, pixels=MAX_PIXELS) as session:
        for start in range(0, len(names), 8):
            some = [(name, (dev / "broken" / name).read_bytes()) for name in names[start : start + 8]]
            said = session.post("/v1/check", files=files(*some))
            assert said.status_code == 200
            for (name, data), one in zip(some, said.json()["verdicts"], strict=True):
                assert one["sha256"] == sha256(data)
                assert (one["error"] is None) == wanted[name], (name, one["error"])
                same_verdict(one, guard.check(data))


@pytest.mark.parametrize("detector", ["gl_mcm", "mcm", "neglabel"])
def test_detectors_of_every_kind_are_served_alike(detector):
    guard = Guard(["red", "blue"], "toy", detector, negatives=["green"] if detector == "neglabel" else None)
    photographs = [(f"{seed}.png", encoded(noisy_picture((90, 70), seed))) for seed in range(12)]
    with client(guard) as session:
        said = session.post("/v1/check", files=files(*photographs)).json()["verdicts"]
    for (_, data), one in zip(photographs, said, strict=True):
        same_verdict(one, guard.check(data))


def test_a_calibrated_guard_gives_its_p_values(monkeypatch):
    guard = calibrated(monkeypatch)
    with client(guard) as session:
        red, green = session.post("/v1/check", files=files(*ALL[:2])).json()["verdicts"]
        assert session.get("/v1/guard").json()["calibration"]["images"] >= 20
    same_verdict(red, guard.check(PICTURES["red.png"]))
    assert red["p_value"] > 0.05 > green["p_value"]
    assert (red["is_ood"], green["is_ood"]) == (False, True)


def test_classify_ranks_as_the_guard_does(api):
    said = api.post("/v1/classify?top=1", files=files(*ALL, ("bad", b"x"))).json()["images"]
    for one in said[:3]:
        (best,) = api.setting.guard.classify(PICTURES[one["id"]], top=1)
        (found,) = one["predictions"]
        assert (found["label"], one["error"]) == (best.label, None)
        assert found["probability"] == pytest.approx(best.probability, abs=1e-6)
    assert said[3]["predictions"] is None
    assert said[3]["error"]


def test_a_name_of_a_file_comes_back_as_it_was_and_is_no_path(api, tmp_path):
    said = api.post("/v1/check", json=as_json((CONFUSED, PICTURES["red.png"]), ("x" * 200, PICTURES["red.png"])))
    assert [one["id"] for one in said.json()["verdicts"]] == [CONFUSED, "x" * 200]
    body = {"images": [{"data": base64.b64encode(PICTURES["red.png"]).decode()}] * 2}
    assert [one["id"] for one in api.post("/v1/check", json=body).json()["verdicts"]] == ["0", "1"]


@pytest.fixture(scope="module")
def searching(tmp_path_factory):
    pytest.importorskip("lancedb")
    from outclass.index import Index, build

    folder = tmp_path_factory.mktemp("search")
    for name, colour in (("red.png", RED), ("green.png", GREEN), ("sub/blue.png", BLUE)):
        save_picture(folder / "photos" / name, colour)
    build(folder / "photos", folder / "photos.lance", "toy")
    with client(index=Index(folder / "photos.lance")) as session:
        session.folder = folder
        yield session


@pytest.mark.parametrize("query", [{"text": "green"}, {"image": base64.b64encode(PICTURES["green.png"]).decode()}])
def test_search_finds_by_words_and_by_image_and_judges(searching, query):
    hits = searching.post("/v1/search", json=query | {"k": 2}).json()["hits"]
    assert len(hits) == 2
    assert hits[0]["id"] == "green.png"
    assert hits[0]["is_ood"] is True


def test_search_can_leave_out_what_is_known(searching):
    hits = searching.post("/v1/search", json={"text": "red", "ood_only": True}).json()["hits"]
    assert [hit["id"] for hit in hits] == ["green.png"]


def test_words_that_name_a_file_of_the_server_are_words(searching):
    path = save_picture(searching.folder / "cellar.png", GREEN)
    by_image = searching.post("/v1/search", json={"image": base64.b64encode(path.read_bytes()).decode()}).json()["hits"]
    by_words = searching.post("/v1/search", json={"text": str(path)}).json()["hits"]
    assert by_image[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert by_words[0]["similarity"] < 0.9


def test_a_search_for_a_picture_that_cannot_be_read_is_a_problem(searching):
    said = searching.post("/v1/search", json={"image": base64.b64encode(b"no image").decode()})
    assert (said.status_code, said.json()["code"]) == (422, "invalid")


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data"}
OLD = ADMIN | {"If-Match": '"0"'}
WRONG = {
    "no json": ("POST", "/v1/check", {"content": b"{", "headers": JSON}, "malformed"),
    "bytes": ("POST", "/v1/check", {"content": b"\xff\xfe", "headers": JSON}, "malformed"),
    "no type": ("POST", "/v1/check", {"content": b"x"}, "media_type"),
    "text": ("POST", "/v1/classify", {"content": b"x", "headers": {"content-type": "text/plain"}}, "media_type"),
    "no boundary": ("POST", "/v1/check", {"content": b"x", "headers": FORM}, "malformed"),
    "no images": ("POST", "/v1/check", {"json": {"images": []}}, "invalid"),
    "unknown word": ("POST", "/v1/check", {"json": as_json(ALL[0]) | {"url": "x"}}, "invalid"),
    "address": ("POST", "/v1/check", {"json": {"images": [{"data": "http://127.0.0.1/cat.png"}]}}, "invalid"),
    "data url": ("POST", "/v1/check", {"json": {"images": [{"data": "data:image/png;base64,AAAA"}]}}, "invalid"),
    "other field": ("POST", "/v1/check", {"files": [("photos", ALL[0])]}, "invalid"),
    "no file": ("POST", "/v1/check", {"files": [("images", (None, "text"))]}, "invalid"),
    "many": ("POST", "/v1/check", {"files": files(*ALL * 22)}, "too_large"),
    "many json": ("POST", "/v1/check", {"json": as_json(*ALL * 22)}, "too_large"),
    "top 0": ("POST", "/v1/classify?top=0", {"files": files(ALL[0])}, "invalid"),
    "top x": ("POST", "/v1/classify?top=x", {"files": files(ALL[0])}, "invalid"),
    "no route": ("GET", "/v2/check", {}, "not_found"),
    "docs": ("GET", "/docs", {}, "not_found"),
    "method": ("GET", "/v1/check", {}, "method"),
    "no index": ("POST", "/v1/search", {"json": {"text": "cat"}}, "not_found"),
    "no token": ("PUT", "/v1/classes", {"json": {"classes": ["a"]}}, "unauthorised"),
    "no names": ("PUT", "/v1/classes", {"json": {"classes": []}, "headers": ADMIN}, "invalid"),
    "all removed": ("DELETE", "/v1/classes?name=red&name=blue", {"headers": ADMIN}, "invalid"),
    "unknown name": ("DELETE", "/v1/classes?name=zebra", {"headers": ADMIN}, "invalid"),
    "known name": ("POST", "/v1/classes", {"json": {"classes": ["Red"]}, "headers": ADMIN}, "invalid"),
    "old version": ("POST", "/v1/classes", {"json": {"classes": ["x"]}, "headers": OLD}, "version"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_a_documented_problem(api, case):
    method, path, body, code = WRONG[case]
    said = api.request(method, path, **body)
    problem = said.json()
    assert said.headers["content-type"] == "application/problem+json"
    assert (problem["code"], said.status_code, problem["status"]) == (code, KINDS[code].status, KINDS[code].status)
    assert problem["detail"].strip()
    assert problem["request_id"] == said.headers["x-request-id"]
    route = api.get("/openapi.json").json()["paths"].get(path.partition("?")[0], {}).get(method.lower())
    assert route is None or str(said.status_code) in route["responses"]


def test_a_truncated_upload_loses_no_image_silently(api):
    request = api.build_request("POST", "/v1/check", files=files(*ALL))
    body, kind = request.read(), {"content-type": request.headers["content-type"]}
    assert api.post("/v1/check", content=body, headers=kind).status_code == 200
    for cut in (len(body) - 3, len(body) - 40, len(body) // 2, 200, 60, 1):
        said = api.post("/v1/check", content=body[:cut], headers=kind)
        assert said.status_code in (400, 422), cut


def test_a_request_id_is_kept_where_it_is_sane(api):
    assert api.get("/healthz", headers={"X-Request-ID": "ab-1.c"}).headers["x-request-id"] == "ab-1.c"
    for strange in ("a b", "x" * 65, "a:b", "<script>", ""):
        given = api.get("/healthz", headers={"X-Request-ID": strange}).headers["x-request-id"]
        assert given != strange
        assert given.isalnum()


def test_counts_tell_images_by_decision_and_failures_by_reason():
    with client() as session:
        session.post("/v1/check", files=files(*ALL, ("bad", b"x")))
        session.post("/v1/check", content=b"x")
        text = session.get("/metrics").text
    for line in (
        'outclass_images_total{decision="id"} 2.0', 'outclass_images_total{decision="ood"} 1.0',
        'outclass_images_total{decision="failed"} 1.0', 'outclass_failures_total{reason="media_type"} 1.0',
        "outclass_queue_images 0.0", "outclass_batch_images_sum 3.0", "outclass_classes 2.0",
        'outclass_request_seconds_count{route="/v1/check",status="415"} 1.0',
    ):  # fmt: skip
        assert line in text, line


def test_readiness_really_scores_and_liveness_does_not():
    from serving import SlowEncoder

    slow = SlowEncoder()
    with client(Guard(["red", "blue"], slow, threshold=-0.9)) as session:
        assert session.get("/readyz").json()["ready"] is True
        assert slow.sizes == [1]
        slow.broken = True
        assert session.get("/readyz").status_code == 503
        assert session.get("/healthz").json()["status"] == "ok"


def test_the_document_has_examples_and_every_kind_of_problem(api):
    document = api.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/check", "/v1/classify", "/v1/search", "/v1/classes", "/v1/guard", "/v1/drift", "/v1/drift/restart",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    text = json.dumps(document)
    for kind in KINDS.values():
        if kind.code != "gone":
            assert f"urn:outclass:problem:{kind.code}" in text
    for route in document["paths"].values():
        for operation in route.values():
            assert operation["description"]
            for status, answer in operation["responses"].items():
                assert "content" in answer, status
    for name in ("ood_score", "is_ood", "sha256"):
        assert name in document["components"]["schemas"]["VerdictOut"]["properties"]


def test_the_service_loads_nothing_that_is_slow():
    code = "import outclass.serve.api, outclass.serve.run, sys; print(*{name.split('.')[0] for name in sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert "fastapi" in said.stdout.split()
    assert not {"torch", "gradio", "pandas", "lancedb", "pyarrow", "sklearn", "onnxruntime"} & set(said.stdout.split())
