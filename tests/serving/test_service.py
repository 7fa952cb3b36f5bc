"""The service over real sockets: answers, refusals, callers who hang up, many callers at once."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.serving import json_bodies
from modeling_cllm4rec.serving.application import make_service
from modeling_cllm4rec.serving.settings import ServiceSettings


@pytest.fixture(scope="module")
def server(start, cllm4rec):
    with start(cllm4rec, most_bytes=20_000) as running:
        yield running


@pytest.fixture(scope="module")
def searching(start, lcrec):
    with start(lcrec) as running:
        yield running


def error_of(reply):
    status, body = reply
    assert list(body) == ["error"] and list(body["error"]) == ["field", "got", "allowed", "what_to_do"]
    assert "Traceback" not in json.dumps(body)
    return status, body["error"]["field"]


def items(body):
    return [[row["item"] for row in result["items"]] for result in body["results"]]


def test_recommend(server, cllm4rec):
    status, body = server.recommend({"users": [7, 1], "k": 3})
    assert status == 200
    table = cllm4rec.recommend(users=[7, 1], k=3)
    assert items(body) == [table.items(7), table.items(1)]


def test_lcrec_recommends_and_searches(searching, lcrec):
    assert items(searching.recommend({"users": ["🎸"], "k": 2})[1]) == [lcrec.recommend(users=["🎸"], k=2).items("🎸")]
    status, body = searching.recommend({"query": "soap", "k": 2, "num_beams": 3})
    assert (status, items(body)) == (200, [lcrec.search(["soap"], 2, num_beams=3).items(0)])
    status, field = error_of(searching.recommend({"query": "soap " * 300, "k": 2}))
    assert (status, field) == (400, "query")


def test_health_names_the_model_and_counts(server, cllm4rec):
    before = server.health()
    model = before["model"]
    assert before["status"] == "ok" and (model["name"], model["folder"]) == (cllm4rec.name_or_path, cllm4rec.name_or_path)
    assert (model["model_type"], model["items"], model["users"]) == ("cllm4rec", 6, 3)
    assert len(model["revision"]) == 64 and model["loaded_at"].endswith("+00:00") and model["load_seconds"] >= 0
    server.recommend({"users": [7], "k": 1})
    after = server.health()
    assert (after["calls"] - before["calls"], after["batches"] - before["batches"], after["users_waiting"]) == (1, 1, 0)
    assert server.ask("GET", "/ready") == (200, {"ready": True})


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_similar_items(server, searching, system, request):
    model, asked = request.getfixturevalue(system), {"cllm4rec": server, "lcrec": searching}[system]
    ids = model.catalogue.ids.ids_of([3, 0])
    status, body = asked.ask("POST", "/similar-items", {"items": ids, "k": 2})
    expected = model.similar_items(ids, k=2)
    assert (status, [one["target_item"] for one in body["results"]], items(body)) == (
        200,
        ids,
        [expected.items(one) for one in ids],
    )
    titles = model.catalogue.titles(model.catalogue.ids.indices_of(expected.items(ids[0])))
    assert [row["title"] for row in body["results"][0]["items"]] == titles
    scores = [row["score"] for result in body["results"] for row in result["items"]]
    assert scores == pytest.approx([row["score"] for row in expected.to_pylist()], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "found"),
    [("cream", ["B00 1", "ä", "5"]), ("SOFT+cream", ["B00 1", "ä"]), ("%C3%B6lbad", ["6"]), ("(cream", ["5"]), ("xyz", [])],
)
def test_items_by_title(server, words, found):
    status, body = server.ask("GET", f"/items?title={words}")
    assert (status, [one["item"] for one in body["items"]], body["found"]) == (200, found, len(found))


def test_items_up_to_a_limit(server):
    first = {"item": "B00 1", "title": "Soft Cream"}
    assert server.ask("GET", "/items?title=cream&limit=1") == (200, {"items": [first], "found": 3})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "title"),
        ("?title=", "title"),
        ("?title=+", "title"),
        ("?title=a&words=a", "query string"),
        ("?title=a&limit=0", "limit"),
    ]
    + [("?title=a&limit=x", "limit"), ("?title=a&limit=%C2%B2", "limit"), ("?title=" + "a+" * 17, "title")],
)
def test_bad_questions_for_items(server, query, field):
    assert error_of(server.ask("GET", f"/items{query}")) == (400, field)


BAD_BODIES = [
    (b"", "body", "a JSON object"),
    (b"[7]", "body", "a JSON object"),
    (b"not json", "body", "JSON in UTF-8"),
    (b'{"users": [7', "body", "JSON in UTF-8"),
    (b"\xff\xfe", "body", "JSON in UTF-8"),
    (b'{"k": NaN}', "body", "NaN is no JSON number"),
    (b'{"k": -Infinity}', "body", "-Infinity is no JSON number"),
    (b'{"users": [7], "k": 1e400}', "body", "1e400 is no finite number"),
    (b'{"users": [-1e999]}', "body", "-1e999 is no finite number"),
    (b'{"users": [7], "users": [1]}', "body", "the key 'users' is there twice"),
    (b"[" * 15_000, "body", "nested too deeply"),
    (b'{"users": ' + b"[" * 8 + b"]" * 8 + b"}", "body", "nested more than 8 deep"),
    (b'{"users": [' + b"1" * 10_000 + b"]}", "body", "JSON in UTF-8"),
    (b'{"histories": [["\\ud800"]]}', "body", "surrogates not allowed"),
    (b'{"users": [8], "k": 1}', "users", "the 3 user_ids"),
    (b'{"users": [7], "k": 7}', "k", "a whole number from 1 to 6"),
    (b'{"users": [7], "k": 0}', "k", "a whole number from 1 to 6"),
    (b'{"users": [7], "k": 1.0}', "k", "a whole number from 1 to 6"),
    (b'{"users": [7], "k": true}', "k", "a whole number from 1 to 6"),
    (b'{"users": [7], "exclude_seen": "no"}', "exclude_seen", "true or false"),
    (b'{"users": "ann"}', "users", "put it in [ ]"),
    (b'{"users": {"ann": 1}}', "users", "give a list"),
    (b'{"users": []}', "users", "a list of 1 to 256"),
    (b'{"users": [true], "k": 1}', "users", "whole numbers"),
    (b'{"users": [7.5], "k": 1}', "users", "whole numbers"),
    (b'{"users": [null], "k": 1}', "users", "whole numbers"),
    (b'{"histories": [7], "k": 1}', "histories[0]", "put it in [ ]"),
    (b'{"historie": [["5"]]}', "body", "did you mean 'histories'?"),
    (b'{"users": [7], "query": "soap"}', "body", "reads no queries"),
    (b'{"users": ["7"], "k": 1}', "users", "whole numbers"),
]


@pytest.mark.parametrize(("body", "field", "words"), BAD_BODIES)
def test_bad_bodies_and_the_server_lives_on(server, body, field, words):
    status, error = server.ask("POST", "/recommend", body)
    assert error_of((status, error)) == (400, field)
    assert words in error["error"]["allowed"] + " " + error["error"]["what_to_do"]
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "items", "give items"),
        ({"items": ["nothing"]}, "items", "the 6 item_ids that the model knows"),
        ({"items": []}, "items", "a list of 1 to 256 give at least one"),
        ({"items": ["ä"] * 257}, "items", "split longer lists into several requests"),
        ({"items": "ä"}, "items", "put it in [ ]"),
        ({"items": [7]}, "items", "strings"),
        ({"items": ["ä"], "k": 7}, "k", "a whole number from 1 to 6"),
        ({"items": ["ä"], "candidates": []}, "candidates", "leave candidates out"),
        ({"item": ["ä"]}, "items", "give items"),
        ({"items": ["ä"], "users": [7]}, "body", "items, k, candidates leave it out"),
    ],
)
def test_bad_questions_for_similar_items(server, body, field, words):
    status, error = server.ask("POST", "/similar-items", body)
    assert error_of((status, error)) == (400, field)
    assert words in error["error"]["allowed"] + " " + error["error"]["what_to_do"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_refused(server, kind):
    status, error = server.ask("POST", "/recommend", {"users": [7], "k": 1}, {"content-type": kind})
    assert error_of((status, error)) == (415, "content-type")
    assert "with curl by --json" in error["error"]["what_to_do"]


def test_other_addresses(server):
    assert error_of(server.ask("GET", "/nothing")) == (404, "path")
    assert error_of(server.ask("GET", "/recommend")) == (405, "path")


def test_a_body_of_ten_megabytes_is_refused_by_its_header_alone(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")  # none of it is ever sent
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_ten_megabytes_gets_its_answer(server, chunked):
    connection = server.connect()
    body = b" " * 10_000_000
    kind = {"content-type": "application/json"}
    connection.request("POST", "/recommend", iter([body]) if chunked else body, kind, encode_chunked=chunked)
    answer = connection.getresponse()
    refused = json.loads(answer.read())["error"]
    assert (answer.status, answer.getheader("connection"), refused["field"]) == (413, "close", "body")
    assert refused["allowed"] == "at most 20000 bytes"
    connection.close()


def test_a_client_that_waits_for_leave_to_send(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\nExpect: 100-continue\r\n\r\n")
        answer = b""
        while part := client.recv(4096):  # until the server closes
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ") and b"100 Continue" not in answer


HEAD = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "


def test_a_body_that_never_arrives(server, monkeypatch):
    monkeypatch.setattr(json_bodies, "BODY_SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(HEAD + b'100\r\n\r\n{"users"')
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert server.health()["status"] == "ok"


def test_a_client_that_hangs_up_while_sending(server, caplog):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(HEAD + b'100\r\n\r\n{"users"')
    assert server.recommend({"users": [7], "k": 1})[0] == 200
    assert not caplog.records


def send(server, question):
    """Open a connection that asks and does not wait."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/recommend", json.dumps(question), {"content-type": "application/json"})
    return connection


def test_a_client_that_hangs_up_while_it_waits_is_never_computed(start, slow, wait):
    with start(slow, most_bytes=20_000) as server:
        slow.gate.clear()
        first = send(server, {"users": [7], "k": 1})
        wait(lambda: slow.begun == 1)  # nobody waits before it has come, either
        second = send(server, {"users": [1], "k": 1})
        wait(lambda: server.health()["users_waiting"] == 1)
        second.close()
        wait(lambda: server.health()["users_waiting"] == 0)
        third = send(server, {"users": [3], "k": 1})
        wait(lambda: server.health()["users_waiting"] == 1)
        slow.gate.set()
        for connection, user in ((first, 7), (third, 3)):
            assert json.loads(connection.getresponse().read())["results"][0]["user"] == user
            connection.close()
        assert slow.sizes == [1, 1]
        assert server.health()["users_waiting"] == 0


def test_callers_at_once_share_passes_and_get_their_own_answers(start, slow, wait, cllm4rec):
    alone = {user: cllm4rec.recommend(users=[user], k=2).items(user) for user in (7, 1, 3)}
    with start(slow) as server, ThreadPoolExecutor(12) as callers:
        slow.gate.clear()
        first = callers.submit(server.recommend, {"users": [7], "k": 2})
        wait(lambda: slow.begun == 1)  # nobody waits before it has come, either
        users = [7, 1, 3] * 3
        rest = [callers.submit(server.recommend, {"users": [user], "k": 2}) for user in users]
        wait(lambda: server.health()["users_waiting"] == len(users))
        slow.gate.set()
        for asked, user in zip([first, *rest], [7, *users], strict=True):
            status, body = asked.result(60)
            assert (status, items(body)) == (200, [alone[user]])
    assert slow.sizes == [1, 9]


def test_a_full_queue_answers_503_and_the_server_lives_on(start, slow, wait):
    with start(slow, queue=256) as server:
        slow.gate.clear()
        sent = [send(server, {"users": [7] * 200, "k": 1})]
        wait(lambda: slow.begun == 1)  # nobody waits before it has come, either
        sent.append(send(server, {"users": [7] * 200, "k": 1}))
        wait(lambda: server.health()["users_waiting"] == 200)
        busy = send(server, {"users": [7] * 57, "k": 1})
        answer = busy.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (503, "1")
        assert json.loads(answer.read())["error"]["what_to_do"] == "ask again in a second"
        slow.gate.set()
        assert [connection.getresponse().status for connection in sent] == [200, 200]
        for connection in (*sent, busy):
            connection.close()
        assert server.recommend({"users": [7], "k": 1})[0] == 200


def test_a_model_that_breaks_shows_no_traceback_but_logs_one(start, slow, monkeypatch, caplog):
    def broken(*arguments, **search):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(slow, "best_items", broken)
    with start(slow) as server:
        status, headers, body = server.send("POST", "/recommend", {"users": [7], "k": 1}, {"x-request-id": "abc-1"})
        assert (status, json.loads(body)["error"]["got"], headers["x-request-id"]) == (500, "RuntimeError", "abc-1")
        assert b"secret" not in body and b"request id abc-1" in body
        assert server.health()["status"] == "ok"
    (record,) = caplog.records
    assert record.message == "request abc-1 failed" and "secret detail" in str(record.exc_info[1])


def test_an_error_of_ours_is_a_400(start, slow, monkeypatch, caplog):
    def broken(*arguments, **search):
        raise InputError("scores hold NaN: the model's weights are broken")

    monkeypatch.setattr(slow, "best_items", broken)
    with start(slow) as server:
        status, body = server.recommend({"users": [7], "k": 1})
        assert (status, body["error"]["what_to_do"]) == (400, "scores hold NaN: the model's weights are broken")
    assert not caplog.records


def test_an_error_while_a_body_is_read_is_no_error_of_the_client(server, monkeypatch, caplog):
    def broken(body):
        raise KeyError("secret detail")

    monkeypatch.setattr(json_bodies, "parse_json", broken)
    status, body = server.recommend({"users": [7], "k": 1})
    assert (status, body["error"]["got"]) == (500, "KeyError")
    assert "secret detail" in str(caplog.records[0].exc_info[1])


def test_settings_out_of_range(cllm4rec, monkeypatch):
    for settings, words in (
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"queue": 255}, "queue is 255; it must be 256 or more"),
        ({"wait_ms": -1}, "wait_ms is -1; it must be 0 or more"),
        ({"wait_ms": float("nan")}, "wait_ms is nan; it must be 0 or more, and a finite number"),
        ({"wait_ms": float("inf")}, "wait_ms is inf; it must be 0 or more, and a finite number"),
        ({"connections": 0}, "connections is 0; it must be 1 or more"),
        ({"api_key": "short"}, "api_key has fewer than 16 characters"),
        ({"api_key": "ä" * 20}, "api_key has .* others than ASCII"),
    ):
        with pytest.raises(ValueError, match=words):
            ServiceSettings(**settings)
    monkeypatch.setattr(cllm4rec.config, "recommendation_prompts", None)
    with pytest.raises(ValueError, match="cannot recommend; name a finetuned"):
        make_service(cllm4rec)
