"""Connections that behave badly: half-closed, slow, too many, too long headers, unread answers."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from modeling_cllm4rec.serving import protocol

BODY = b'{"users": [7], "k": 1}'


def raw(path=b"/recommend", version=b"1.1", body=BODY, more=b""):
    head = b"POST %b HTTP/%b\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path, version, len(body), more) + body


def read_all(client):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


@pytest.fixture(scope="module")
def server(start, cllm4rec):
    with start(cllm4rec) as running:
        yield running


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_sends_no_more_gets_its_answer(start, slow, wait, version):
    with start(slow) as server, connected(server) as client:
        slow.gate.clear()
        client.sendall(raw(version=version))
        client.shutdown(socket.SHUT_WR)
        wait(lambda: slow.begun == 1)
        time.sleep(3 * protocol.PROBE_SECONDS)
        slow.gate.set()
        answer = read_all(client)
    interim, rest = answer.split(b"\r\n\r\n", 1) if version == b"1.1" else (b"HTTP/1.1 100 Continue", answer)
    assert interim == b"HTTP/1.1 100 Continue" and rest.startswith(b"HTTP/1.1 200 ")
    assert json.loads(rest.split(b"\r\n\r\n", 1)[1])["results"][0]["user"] == 7


def test_pipelined_requests_of_a_client_that_sends_no_more_are_all_answered(server):
    with connected(server) as client:
        client.sendall(raw() * 5)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).count(b"HTTP/1.1 200 ") == 5


def test_a_client_that_closes_while_it_sends_gets_no_answer(server):
    with connected(server) as client:
        client.sendall(raw()[:-3])
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert server.health()["status"] == "ok"


def test_headers_that_never_end_are_not_waited_for(start, cllm4rec, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    with start(cllm4rec) as server:
        clients = [connected(server) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(raw()[: 3 * number])
        started = time.monotonic()
        assert {read_all(client) for client in clients} == {b""}
        assert time.monotonic() - started < 20
        for client in clients:
            client.close()
        with connected(server) as client:  # the clock runs for each request of a connection
            client.sendall(raw() + b"POST /recomm")
            assert read_all(client).count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize("headers", [b"X-A: " + b"a" * 60_000 + b"\r\n", b"".join(b"X-%d: a\r\n" % n for n in range(6000))])
@pytest.mark.parametrize(("parts", "status", "field"), [(1, 431, "headers"), (4, 400, "request")])
def test_long_headers_are_refused_as_all_errors_are(server, headers, parts, status, field):
    with connected(server) as client:
        data = raw(more=headers)
        for start in range(0, len(data), -(-len(data) // parts)):
            client.sendall(data[start : start + -(-len(data) // parts)])
            time.sleep(0.3 if parts > 1 else 0)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["field"] == field


def test_a_long_query_string_is_refused(server):
    assert server.send("GET", "/items?title=" + "a" * 20_000)[0] in (400, 431)


def test_what_is_no_http(server):
    with connected(server) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"HTTP/1.1 400 " in read_all(client)


def test_connections_beyond_the_limit_get_503_and_the_others_go_on(start, cllm4rec, wait):
    with start(cllm4rec, connections=3) as server:
        kept = [server.connect() for _ in range(3)]
        for connection in kept:
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        beyond = server.connect()
        beyond.request("GET", "/health")
        answer = beyond.getresponse()
        assert (answer.status, answer.getheader("retry-after"), answer.getheader("connection")) == (503, "1", "close")
        assert json.loads(answer.read())["error"]["field"] == "connections"
        kept[0].request("GET", "/health")
        assert kept[0].getresponse().status == 200
        for connection in (*kept, beyond):
            connection.close()
        wait(lambda: server.ask("GET", "/health")[0] == 200)


def test_a_client_that_never_reads_does_not_hold_its_connection(start, cllm4rec, monkeypatch, wait):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    with start(cllm4rec) as server, connected(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.5)
        with contextlib.suppress(OSError):  # the server stops reading, or ends the connection
            for _ in range(5000):
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1)
        client.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass
        assert server.health()["status"] == "ok"
