"""The outermost layer: request ids, the access log, metrics, `Host`, and the API key."""

from __future__ import annotations

import json
import logging
import re

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from prometheus_client.parser import text_string_to_metric_families

from modeling_cllm4rec.serving.guard import access

KEY = "0123456789abcdef"
GOOD = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded(start, cllm4rec):
    with start(cllm4rec, api_key=KEY, allowed_hosts=("127.0.0.1", "localhost")) as running:
        yield running


def samples(server, headers=None):
    """Metric and labels -> value."""
    status, got, text = server.send("GET", "/metrics", headers=headers)
    assert status == 200 and got["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(text.decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_every_route_but_probes_and_documentation_needs_the_key(guarded):
    for method, path in (("POST", "/recommend"), ("POST", "/similar-items"), ("GET", "/items?title=a"), ("POST", "/reload")):
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Bearer {KEY}x"}, {"authorization": "Basic abc"}):
            status, got, body = guarded.send(method, path, None, headers)
            assert (status, got["www-authenticate"], json.loads(body)["error"]["field"]) == (401, "Bearer", "authorization")
            assert KEY.encode() not in body
    assert guarded.send("GET", "/metrics")[0] == 401
    assert guarded.send("GET", "/unknown")[0] == 401
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert guarded.send("GET", path)[0] == 200
    assert guarded.ask("POST", "/recommend", {"users": [7], "k": 1}, GOOD)[0] == 200
    assert guarded.ask("POST", "/recommend", {"users": [7], "k": 1}, {"authorization": f"bearer  {KEY}"})[0] == 200


def test_no_body_is_read_without_a_key(guarded):
    assert guarded.ask("POST", "/recommend", b"{" * 2_000_000)[0] == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:8000", 200),
        ("localhost", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost:80:80", 421),
        ("evil.example:8000", 421),
        ("", 421),
        ("[::1]", 421),
        ("user@localhost", 421),
    ],
)
def test_other_hosts_are_refused(guarded, host, status):
    got, body = guarded.ask("GET", "/health", headers={"host": host})
    assert got == status
    if status == 421:
        assert body["error"]["allowed"] == "127.0.0.1, localhost" and "--allowed-hosts" in body["error"]["what_to_do"]


def test_a_request_id_comes_back_and_a_bad_one_is_replaced(guarded):
    assert guarded.send("GET", "/health", headers={"x-request-id": "order-1.2_3"})[1]["x-request-id"] == "order-1.2_3"
    for given in ("a b", "x" * 65, 'a"b', ""):
        replaced = guarded.send("GET", "/health", headers={"x-request-id": given})[1]["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", replaced)
    assert guarded.send("GET", "/unknown")[1]["x-request-id"]


def test_the_access_log_has_a_line_of_json_without_the_query(start, cllm4rec, caplog):
    caplog.set_level(logging.INFO, access.name)
    with start(cllm4rec, access_log=True) as server:
        server.send("GET", "/items?title=cream", headers={"x-request-id": "one"})
        server.send("GET", "/%0Aforged%22", headers={"x-request-id": "two"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == access.name]
    assert [(line["request_id"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("one", "GET", "/items", 200),
        ("two", "GET", '/\nforged"', 404),
    ]
    assert all(line["client"] == "127.0.0.1" and line["ms"] >= 0 for line in lines)
    assert all("\n" not in record.message for record in caplog.records)


def test_metrics_count_what_was_asked(start, cllm4rec):
    with start(cllm4rec) as server:
        before = samples(server)
        server.recommend({"users": [7, 1], "k": 1})
        server.recommend({"users": [8]})
        server.ask("POST", "/similar-items", {"items": ["ä"], "k": 1})
        for method in ("GET", "BREW"):
            server.send(method, "/unknown/1")
        after = samples(server)

    def more(name, **labels):
        key = (name, *sorted(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    for route, status, count in (("/recommend", "200", 1), ("/recommend", "400", 1), ("/similar-items", "200", 1)):
        assert more("cllm4rec_requests_total", route=route, method="POST", status=status) == count
    assert more("cllm4rec_requests_total", route="other", method="other", status="404") == 2  # labels no client can multiply
    assert more("cllm4rec_request_seconds_count", route="/recommend") == 2
    assert (more("cllm4rec_batch_users_count"), more("cllm4rec_batch_users_sum"), more("cllm4rec_batch_seconds_count")) == (
        2,
        3,
        2,
    )
    assert after[("cllm4rec_users_waiting",)] == 0 and after[("cllm4rec_queue_capacity",)] == 1024
    assert after[("cllm4rec_requests_running",)] == 1  # that for the metrics
    assert after[("cllm4rec_reloads_total", ("outcome", "failed"))] == 0
    (model,) = [dict(key[1:]) for key in after if key[0] == "cllm4rec_model_info"]
    assert (model["name"], model["model_type"]) == (cllm4rec.name_or_path, "cllm4rec")


def test_the_schema_describes_every_route_with_examples(guarded):
    schema = guarded.ask("GET", "/openapi.json")[1]
    assert set(schema["paths"]) == {"/recommend", "/similar-items", "/items", "/reload", "/metrics", "/health", "/ready"}
    for path, kinds in schema["paths"].items():
        for operation in kinds.values():
            assert operation["description"] and "422" not in operation["responses"]
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
            assert (operation.get("security") == [{"HTTPBearer": []}]) == (path not in ("/health", "/ready"))
    models = schema["components"]["schemas"]
    for request in ("RecommendRequest", "SimilarItemsRequest", "ReloadRequest"):
        assert models[request]["additionalProperties"] is False and models[request]["examples"]
    users = models["RecommendRequest"]["properties"]["users"]
    assert users["description"] and users["anyOf"][0]["maxItems"] == 256


def test_the_examples_of_the_schema_have_its_form():
    from modeling_cllm4rec.serving import schemas

    for schema in (schemas.RecommendRequest, schemas.SimilarItemsRequest, schemas.ReloadRequest, schemas.RecommendAnswer):
        for example in schema.model_config["json_schema_extra"]["examples"]:
            schema.model_validate(example)


@pytest.mark.parametrize("path", ["/recommend", "/similar-items"])
def test_answers_have_the_form_of_the_schema(guarded, path):
    from modeling_cllm4rec.serving import schemas

    asked = {"/recommend": {"users": [7], "k": 2}, "/similar-items": {"items": ["ä"], "k": 2}}[path]
    form = {"/recommend": schemas.RecommendAnswer, "/similar-items": schemas.SimilarItemsAnswer}[path]
    form.model_validate(guarded.ask("POST", path, asked, GOOD)[1], extra="forbid")
    schemas.Health.model_validate(guarded.health(), extra="forbid")
    schemas.TitleSearchAnswer.model_validate(guarded.ask("GET", "/items?title=cream", headers=GOOD)[1], extra="forbid")
    schemas.ErrorAnswer.model_validate(guarded.ask("GET", "/unknown")[1], extra="forbid")
