"""Where a model computes: the accelerator if there is one, and everything that it is given follows it there."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from lcrec_models import new_lcrec
from pretend_device import DEVICE, pretend_device

from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.exports.vectors import encode_histories
from modeling_cllm4rec.hub import devices
from modeling_cllm4rec.hub.devices import check_device_map, choose_device, choose_dtype
from modeling_cllm4rec.hub.loading import load_recommender

HISTORIES = Histories(np.array([0, 2, 3]), np.array([0, 4, 2], np.int32))


@pytest.fixture(scope="module")
def cllm4rec(make_folder: Callable[[Path, Path], Path], tiny_backbones: dict[str, Path], tmp_path_factory: Any) -> Path:
    return make_folder(tiny_backbones["llama"], tmp_path_factory.mktemp("devices") / "cllm4rec")


@pytest.fixture(scope="module")
def lcrec(tiny_backbones: dict[str, Path], tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("devices") / "lcrec"
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Give this machine an accelerator that computes on the CPU and whose tensors refuse those of the CPU."""
    monkeypatch.setattr(devices, "available_devices", lambda: [str(DEVICE), "cpu"])
    with pretend_device() as device:
        yield device


def test_tensors_of_the_pretended_device_refuse_those_of_the_cpu(accelerator: torch.device) -> None:
    with pytest.raises(RuntimeError, match="tensors on cpu and on lazy"):
        torch.ones(2, device=accelerator) + torch.ones(2)
    with pytest.raises(RuntimeError, match="numpy"):
        torch.ones(2, device=accelerator).numpy()


def answers_of_cllm4rec(model: Any) -> list[Any]:
    table = model.recommend(users=[7, 1], k=3).table.to_pydict()
    some = model.recommend(histories=[["5"]], k=2, candidates=["B00 1", "6", "ä"]).table.to_pydict()
    vectors = [model.item_vectors(np.array([3, 0])), encode_histories(model, np.array([0]), [np.array([2])])]
    return [table, some, model.score_histories(np.array([0, -1]), HISTORIES), *vectors]


def answers_of_lcrec(model: Any) -> list[Any]:
    found = [model.recommend(users=["ann", "🎸"], k=3).table.to_pydict(), model.search(["a soft cream"], k=2).table.to_pydict()]
    every = model.recommend(histories=[["item 1"]], k=4, scoring="all", candidates=["item 2", "item 3", "item 4", "ä"])
    ranked = model.rank_histories(None, HISTORIES, HISTORIES, 3)
    return [*found, every.table.to_pydict(), ranked, model.item_vectors(np.array([3, 0]))]


def assert_same_answers(found: list[Any], expected: list[Any]) -> None:
    """Compare items exactly and scores to 1e-5: another device runs other kernels."""
    for one, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, dict):
            np.testing.assert_allclose(one.pop("score"), wanted["score"], rtol=1e-5)
            assert one == {name: values for name, values in wanted.items() if name != "score"}
        else:
            np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_inputs_follow_the_model_to_the_accelerator(
    system: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = request.getfixturevalue(system)
    ask = answers_of_cllm4rec if system == "cllm4rec" else answers_of_lcrec
    expected = ask(load_recommender(folder, device="cpu"))
    request.getfixturevalue("accelerator")
    caplog.set_level(logging.INFO)
    model = load_recommender(folder)
    assert {weight.device.type for weight in model.parameters()} == {"lazy"}
    assert f"{folder}: on lazy, float32, attention sdpa" in caplog.text
    assert_same_answers(ask(model), expected)


def test_items_are_added_on_the_accelerator(cllm4rec: Path, accelerator: torch.device) -> None:
    model = load_recommender(cllm4rec)
    model.add_items([{"item_id": "new", "title": "title 1"}])
    model.remove_items(["5"])
    assert model.item_collaborative.weight.device.type == "lazy" and len(model.item_collaborative.weight) == 6
    assert model.recommend(users=[7], k=2, exclude_seen=False).table.num_rows == 2


def test_an_offloaded_model_answers_as_the_whole_one(cllm4rec: Path) -> None:
    whole = answers_of_cllm4rec(load_recommender(cllm4rec, device="cpu"))
    plan = {"backbone": "cpu", "user_collaborative": "cpu", "user_content": "cpu", "item_content": "disk"}
    for place in ("cpu", "disk"):
        model = load_recommender(cllm4rec, device_map={**plan, "item_collaborative": place})
        assert_same_answers(answers_of_cllm4rec(model), whole)


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_a_backbone_over_two_devices_answers_as_on_one(system: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(system)
    ask = answers_of_cllm4rec if system == "cllm4rec" else answers_of_lcrec
    model: Any = load_recommender(folder, device="cpu")
    expected = ask(model)
    with pretend_device() as device:
        body = model.backbone.base_model
        last = [body.layers[-1], body.norm] if system == "cllm4rec" else [body.h[-1], body.ln_f]
        add_hook_to_module(model, AlignDevicesHook("cpu"))
        for module in (body.get_input_embeddings(), model.backbone.get_output_embeddings()):
            add_hook_to_module(module, AlignDevicesHook("cpu"))
        for module in last:
            add_hook_to_module(module.to(device), AlignDevicesHook(device))
        assert {weight.device.type for weight in model.parameters()} == {"cpu", "lazy"}
        assert_same_answers(ask(model), expected)


@pytest.mark.parametrize(
    ("given", "local_rank", "chosen"),
    [
        (None, "0", "cuda:0"),
        ("auto", "1", "cuda:1"),
        ("cuda", "3", "cuda:1"),
        ("cuda:0", "1", "cuda:0"),
        ("CPU", "0", "cpu"),
        (torch.device("cuda", 1), "0", "cuda:1"),
    ],
)
def test_each_process_of_a_launch_has_its_own_accelerator(
    given: Any, local_rank: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert str(choose_device(given)) == chosen


def test_without_an_accelerator_the_cpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:7", r"device is 'cuda:7'; this machine has cuda:0, cuda:1, cpu; did you mean"),
        ("gpu", r"device is 'gpu'; this machine has cuda:0, cuda:1, cpu; did you mean 'cpu'\?"),
        ("mps", r"device is 'mps'; this machine has cuda:0, cuda:1, cpu; leave it out to choose the accelerator"),
        (0, r"device is '0'; this machine has cuda:0, cuda:1, cpu; "),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    with pytest.raises(InputError, match=words):
        choose_device(device)


@pytest.mark.parametrize("dtype", ["int8", "bfloat", torch.int64, "float64"])
def test_a_dtype_that_is_not_allowed_is_refused(dtype: Any) -> None:
    words = "allowed are float32, bfloat16, float16, and auto for that of the saved model; "
    with pytest.raises(InputError, match=f"dtype is '{dtype}'; {words}"):
        choose_dtype(dtype)


@pytest.mark.parametrize("device_map", ["automatic", "[1]", "{", 7])
def test_a_device_map_that_is_none_is_refused(device_map: Any) -> None:
    with pytest.raises(
        InputError, match="device_map is .*; allowed are auto, balanced, balanced_low_0, sequential, and an object"
    ):
        check_device_map(device_map)


def test_a_device_next_to_a_device_map_is_refused() -> None:
    with pytest.raises(InputError, match="device is 'cpu' and device_map is 'auto': a map names all devices; leave one out"):
        check_device_map("auto", "cpu")


def test_an_attention_that_is_not_there_is_refused(cllm4rec: Path) -> None:
    words = f"attn_implementation is 'fast'; it cannot be used with the model in {cllm4rec}: "
    with pytest.raises(InputError, match=words):
        load_recommender(cllm4rec, attn_implementation="fast")


@pytest.mark.parametrize("place", ["cuda:7", 3, "gpu"])
def test_a_map_to_a_device_that_is_not_there_is_refused(place: Any) -> None:
    with pytest.raises(InputError, match=f"device_map: of 'backbone', device is '{place}'; this machine has "):
        check_device_map({"": "cpu", "item_content": "disk", "backbone": place})


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_the_command_takes_dtype_and_attention_and_says_where_it_runs(
    system: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = request.getfixturevalue(system)
    flags = ["--device", "cpu", "--dtype", "bf16", "--attn-implementation", "eager"]
    assert main(["recommend", "--model", str(folder), "--k", "2", *flags]) == 0
    assert f"{folder}: on cpu, bfloat16, attention eager" in caplog.messages
    assert len(capsys.readouterr().out.splitlines()) == 2 * (2 if system == "cllm4rec" else 3)


def test_a_wrong_flag_is_named_as_a_flag(cllm4rec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, words in [
        ("--device", "--device is 'tpu'; this machine has"),
        ("--dtype", "--dtype is 'tpu'; allowed are"),
        ("--attn-implementation", "--attn-implementation is 'tpu'; it cannot be used"),
        ("--device-map", "--device-map is 'tpu'; allowed are"),
    ]:
        assert main(["recommend", "--model", str(cllm4rec), flag, "tpu"]) == 2
        assert words in capsys.readouterr().err
