"""Another model takes the place of the one that is served: no call is lost, and a bad model is not served."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from modeling_cllm4rec.hub.loading import load_recommender

KEY = "0123456789abcdef"
GOOD = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def next_folder(cllm4rec_folder, tmp_path_factory):
    """Return the same catalogue with other weights."""
    folder = tmp_path_factory.mktemp("next") / "cllm4rec"
    shutil.copytree(cllm4rec_folder, folder)
    model = load_recommender(folder, device="cpu")
    with torch.no_grad():
        model.item_collaborative.weight.neg_()
    model.save_pretrained(folder)
    return folder


def load(name):
    return load_recommender(name, device="cpu")


def first_item(server, user=7):
    status, body = server.ask("POST", "/recommend", {"users": [user], "k": 1, "exclude_seen": False}, GOOD)
    assert status == 200, body
    return body["results"][0]["items"][0]["item"]


def reload(server, model=None):
    return server.ask("POST", "/reload", None if model is None else {"model": str(model)}, GOOD)


def test_there_and_back(start, cllm4rec_folder, next_folder, lcrec_folder):
    old, new = load(cllm4rec_folder), load(next_folder)
    expected = [model.recommend(users=[7], k=1, exclude_seen=False).items(7)[0] for model in (old, new)]
    assert expected[0] != expected[1]
    with start(load(cllm4rec_folder), load, api_key=KEY) as server:
        before = server.health()["model"]
        assert first_item(server) == expected[0]
        status, body = reload(server, next_folder)
        assert (status, body["previous"]) == (200, before)
        assert body["model"] == server.health()["model"] and body["model"]["folder"] == str(next_folder)
        assert body["model"]["revision"] != before["revision"] and body["model"]["load_seconds"] > 0
        assert first_item(server) == expected[1]
        assert reload(server, body["previous"]["folder"])[0] == 200
        assert first_item(server) == expected[0]
        assert server.health()["model"]["revision"] == before["revision"]
        assert reload(server, lcrec_folder)[1]["model"]["model_type"] == "lcrec"  # of the other system
        assert reload(server)[1]["model"]["revision"] == before["revision"]  # without a name, that of the command line
        assert server.health()["calls"] == 3


def test_calls_in_the_queue_are_answered_by_the_model_that_they_asked(start, slow, wait, cllm4rec, next_folder):
    new = load(next_folder)
    old = cllm4rec.recommend(users=[7], k=1, exclude_seen=False).items(7)[0]
    found: dict[int, str] = {}

    def ask(number):
        found[number] = first_item(server)

    with start(slow, lambda name: new, api_key=KEY) as server:
        slow.gate.clear()
        callers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        callers[0].start()
        wait(lambda: slow.begun == 1)
        for caller in callers[1:]:
            caller.start()
        wait(lambda: server.health()["users_waiting"] == 3)
        assert reload(server)[0] == 200
        assert (
            first_item(server) == new.recommend(users=[7], k=1, exclude_seen=False).items(7)[0]
        )  # does not wait for the old one
        slow.gate.set()
        for caller in callers:
            caller.join(30)
        assert list(found.values()) == [old] * 4


def test_no_call_is_lost_while_models_change(start, cllm4rec_folder, next_folder):
    answers: list[str] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            try:
                answers.append(first_item(server))
            except BaseException as error:
                failures.append(error)

    with start(load(cllm4rec_folder), load, api_key=KEY) as server:
        callers = [threading.Thread(target=ask) for _ in range(6)]
        for caller in callers:
            caller.start()
        for folder in (next_folder, cllm4rec_folder) * 2:
            assert reload(server, folder)[0] == 200
        stop.set()
        for caller in callers:
            caller.join(30)
    assert not failures and len(set(answers)) == 2


def test_a_model_that_was_replaced_leaves_the_memory(start, cllm4rec, cllm4rec_folder, wait):
    loaded = []

    def remembered(name):
        model = load(name)
        loaded.append(weakref.ref(model))
        return model

    with start(cllm4rec, remembered, api_key=KEY) as server:
        for _ in range(2):
            assert reload(server, cllm4rec_folder)[0] == 200
            assert first_item(server)

        def dropped():
            gc.collect()
            return loaded[0]() is None

        wait(dropped)
        assert loaded[1]() is not None


def test_a_bad_model_is_not_served(start, cllm4rec_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(cllm4rec_folder, broken)
    model = load(broken)
    with torch.no_grad():
        model.item_collaborative.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    cut = tmp_path / "cut"
    shutil.copytree(cllm4rec_folder, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(cllm4rec_folder, unfinished)
    model = load(unfinished)
    model.config.recommendation_prompts = None
    model.save_pretrained(unfinished)
    with start(load(cllm4rec_folder), load, api_key=KEY) as server:
        before = server.health()["model"]
        for folder, words in (
            (tmp_path / "none", "there is no such folder"),
            (broken, "item_collaborative.weight holds 192 of 192 numbers that are NaN or infinite"),
            (cut, "the file is cut off"),
            (unfinished, "cannot recommend; name a finetuned or aligned model"),
        ):
            status, body = reload(server, folder)
            assert (status, body["error"]["field"], body["error"]["got"]) == (400, "model", str(folder)), body
            assert words in body["error"]["what_to_do"]
        for body in (b"{", b'{"model": 7}', b'{"model": ""}', b'{"folder": "x"}'):
            assert server.ask("POST", "/reload", body, GOOD)[0] == 400
        assert server.health()["model"] == before and first_item(server)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_model_whose_words_cannot_be_read_takes_no_place(start, lcrec_folder, tmp_path, content):
    broken = shutil.copytree(lcrec_folder, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    if content is not None:
        (broken / "tokenizer.json").write_text(content)
    with start(load(lcrec_folder), load, api_key=KEY) as server:
        status, body = reload(server, broken)
        assert (status, body["error"]["field"]) == (400, "model")
        assert "the tokenizer in" in body["error"]["what_to_do"] and "\n" not in body["error"]["what_to_do"]
        status, body = server.ask("POST", "/recommend", {"query": "soap", "k": 1}, GOOD)
        assert status == 200 and len(body["results"][0]["items"]) == 1


def test_who_may_reload(start, cllm4rec):
    with start(cllm4rec, load) as server:
        status, body = server.ask("POST", "/reload")
        assert (status, body["error"]["what_to_do"]) == (403, "start the server with --api-key-file, or send its process SIGHUP")
    with start(cllm4rec, api_key=KEY) as server:
        assert reload(server)[0] == 409
    begun, gate = threading.Event(), threading.Event()

    def slowly(name):
        begun.set()
        assert gate.wait(30)
        return cllm4rec

    with start(cllm4rec, slowly, api_key=KEY) as server:
        first = threading.Thread(target=reload, args=(server,))
        first.start()
        assert begun.wait(30)
        assert reload(server)[0] == 409
        gate.set()
        first.join(30)
        assert first_item(server)
