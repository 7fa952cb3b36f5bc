"""A model of either system, and servers around them in threads of this process."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lcrec_models import new_lcrec

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

ITEMS = ["B00 1", "<item_0>", "🎸", "ä", "5", "6"]
TITLES = ["Soft Cream", "Hard Soap", None, "Cream for a SOFT skin", "100% (cream)", "Ölbad"]


@pytest.fixture(scope="session")
def cllm4rec_folder(tiny_backbones, tmp_path_factory) -> Path:
    """Users 7 (history: items 0, 4), 1 (item 2) and 3 (none), six items with titles."""
    folder = tmp_path_factory.mktemp("served") / "cllm4rec"
    model = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        users=KnownUsers([7, 1, 3], np.array([0, 2, 3, 3]), np.array([0, 4, 2], np.int32)),
        catalogue=Catalogue(pa.table({"item_id": ITEMS, "title": TITLES})),
        initializer_range=0.5,
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(
        tiny_backbones["gpt2"], num_users=3, num_items=6, id_offset=model.config.id_offset
    )
    model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lcrec_folder(tiny_backbones, tmp_path_factory) -> Path:
    """Users ann, user 1 and a guitar; twelve items `item 0` ..., five beams."""
    folder = tmp_path_factory.mktemp("served") / "lcrec"
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cllm4rec(cllm4rec_folder) -> Any:
    """Read it, do not change it."""
    return load_recommender(cllm4rec_folder).eval()


@pytest.fixture(scope="session")
def lcrec(lcrec_folder) -> Any:
    """Read it, do not change it."""
    return load_recommender(lcrec_folder).eval()


class Server:
    """A running service; `ask` sends one request over a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer; `body` is bytes, or a value to send as JSON."""
        connection = self.connect()
        kind = {} if body is None else {"content-type": "application/json"}
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, _, answer = self.send(method, path, body, headers)
        return status, json.loads(answer)

    def recommend(self, question: Any) -> tuple[int, Any]:
        return self.ask("POST", "/recommend", question)

    def health(self) -> dict[str, Any]:
        return self.ask("GET", "/health")[1]


@pytest.fixture(scope="session")
def start() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`with start(model, queue=300) as server:`"""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason="needs the extra serve")
    import uvicorn

    from modeling_cllm4rec.serving.application import make_service
    from modeling_cllm4rec.serving.protocol import server_config
    from modeling_cllm4rec.serving.settings import ServiceSettings

    @contextlib.contextmanager
    def started(model: Any, load: Callable[[str], Any] | None = None, **given: Any) -> Iterator[Server]:
        settings = ServiceSettings(**given)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = server_config(make_service(model, settings, load), settings)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            wait_for(lambda: server.started)
            try:
                yield Server(listener.getsockname()[1])
            finally:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

    return started


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Return as soon as the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def wait() -> Callable[..., None]:
    """`wait_for`."""
    return wait_for


class SlowModel:
    """The model, which answers when the event `gate` lets it: `begun` and `passes` count passes at the gate and through it."""

    def __init__(self, model: Any) -> None:
        self.model, self.gate, self.passes, self.sizes = model, threading.Event(), 0, []
        self.begun = 0
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def eval(self) -> SlowModel:
        return self

    def best_items(self, prompts: Any, *arguments: Any, **search: Any) -> Any:
        self.begun += 1
        assert self.gate.wait(30)
        self.passes += 1
        self.sizes.append(len(prompts))
        return self.model.best_items(prompts, *arguments, **search)


@pytest.fixture
def slow(cllm4rec) -> SlowModel:
    """CLLM4Rec behind a gate."""
    return SlowModel(cllm4rec)
