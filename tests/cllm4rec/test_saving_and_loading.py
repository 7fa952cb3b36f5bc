"""Folders: nothing lost on the way, every class finds its code, and what is broken is refused."""

import ast
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import AUTO_MAP, CLLM4RecConfig
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import (
    CLLM4RecForCausalLM,
    CLLM4RecForRecommendation,
    CLLM4RecModel,
)
from modeling_cllm4rec.core import saved_folder
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import FileWriteError
from modeling_cllm4rec.core.saved_folder import flat_code

CODE = flat_code(CLLM4RecForRecommendation)
FLAT_FILES = tuple(CODE)
CLASSES = (CLLM4RecModel, CLLM4RecForRecommendation, CLLM4RecForCausalLM)
WEIGHTS = "model.safetensors"
gpt2_only = pytest.mark.parametrize("backbone", ["gpt2"], indirect=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def probe(model: PreTrainedModel) -> torch.Tensor:
    """Any output that every weight of the class has a part in."""
    config = model.config
    first_item = config.id_offset + config.num_users
    ids = torch.tensor([[7, config.id_offset + 1, 9, first_item, first_item + 11]])
    with torch.no_grad():
        return next(iter(model(ids).values()))


def test_weights_and_outputs_are_the_same_after_a_round_trip(saved, recommender, writer, bare, tmp_path):
    for model in (bare, writer, recommender):
        loaded, info = type(model).from_pretrained(saved, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
        assert torch.equal(probe(loaded), probe(model))
        assert {name: weight.shape for name, weight in loaded.named_parameters()} == {
            name: weight.shape for name, weight in model.named_parameters()
        }
    loaded.save_pretrained(tmp_path)
    assert sha256(tmp_path / WEIGHTS) == sha256(saved / WEIGHTS)
    assert loaded.catalogue.table.equals(recommender.catalogue.table)
    assert loaded.users.ids.array.equals(recommender.users.ids.array)
    assert [loaded.users.history(user).tolist() for user in range(4)] == [
        recommender.users.history(user).tolist() for user in range(4)
    ]


def test_the_file_holds_every_weight_once(backbone, saved, recommender):
    with safe_open(saved / WEIGHTS, "pt") as file:
        names = set(file.keys())
    tied = recommender.config.text_config.tie_word_embeddings
    head = {name for name, module in recommender.named_modules() if module is recommender.get_output_embeddings()}
    assert {f"{name}.weight" for name in head} - names == ({f"{name}.weight" for name in head} if tied else set())
    assert tied == (recommender.get_output_embeddings().weight is recommender.get_input_embeddings().weight)
    tables = {f"{kind}_{side}.weight" for kind in ("user", "item") for side in ("collaborative", "content")}
    assert tables <= names
    assert all(name.startswith("backbone.") for name in names - tables)


@pytest.mark.parametrize("backbone", ["gpt2", "llama"], indirect=True)
@pytest.mark.parametrize("saving", CLASSES)
def test_a_folder_saved_by_any_class_is_loaded_by_all(saving, saved, recommender, writer, bare, tmp_path):
    saving.from_pretrained(saved).save_pretrained(tmp_path)
    for model in (bare, writer, recommender):
        assert torch.equal(probe(type(model).from_pretrained(tmp_path)), probe(model))
    check_code(tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert generation["eos_token_id"] == 0


def check_code(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    for file in FLAT_FILES:
        assert (folder / file).read_bytes() == CODE[file]


def test_the_flat_files_import_only_one_another():
    for file in FLAT_FILES:
        for node in ast.walk(ast.parse(CODE[file])):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in FLAT_FILES
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {name.split(".")[0] for name in names} & {"modeling_cllm4rec"}
    modules = {entry.split(".")[0] + ".py" for entry in AUTO_MAP.values()}
    assert modules <= set(FLAT_FILES)


@gpt2_only
@pytest.mark.parametrize("name", [class_.__name__ for class_ in CLASSES])
def test_code_loaded_from_a_folder_saves_itself_again(name, saved, bare, writer, recommender, tmp_path):
    remote = get_class_from_dynamic_module(f"modeling_cllm4rec.{name}", str(saved))
    assert remote not in CLASSES
    model = remote.from_pretrained(saved)
    assert type(model.config).__module__.startswith("transformers_modules.")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # over itself
    check_code(tmp_path)
    again = get_class_from_dynamic_module(f"modeling_cllm4rec.{name}", str(tmp_path)).from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)  # the code's own files are where they belong already
    check_code(tmp_path)
    for expected in (bare, writer, recommender):
        assert torch.equal(probe(type(expected).from_pretrained(tmp_path)), probe(expected))


@gpt2_only
def test_shards(saved, recommender, tmp_path):
    recommender.save_pretrained(tmp_path, max_shard_size="30KB")
    assert not (tmp_path / WEIGHTS).exists()
    assert torch.equal(probe(CLLM4RecForRecommendation.from_pretrained(tmp_path)), probe(recommender))
    recommender.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert torch.equal(probe(CLLM4RecForRecommendation.from_pretrained(tmp_path)), probe(recommender))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_16_bits(dtype, saved, recommender):
    loaded = CLLM4RecForRecommendation.from_pretrained(saved, dtype=dtype)
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    scores = probe(recommender)
    assert (probe(loaded).float() - scores).abs().max() < 0.05 * scores.abs().max()
    table = loaded.recommend(users=["ann"], k=3).table
    assert table.num_rows == 3
    assert table.schema.field("score").type == pa.float32()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_storing_in_16_bits(dtype, backbone, saved, tmp_path):
    CLLM4RecForRecommendation.from_pretrained(saved, dtype=dtype).save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / WEIGHTS).values()} == {dtype}
    assert CLLM4RecForRecommendation.from_pretrained(tmp_path).dtype == dtype
    wide = CLLM4RecForRecommendation.from_pretrained(tmp_path, dtype=torch.float32)
    narrow = CLLM4RecForRecommendation.from_pretrained(saved, dtype=dtype)
    for ours, expected in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(ours, expected.float())
    made = CLLM4RecForRecommendation.from_backbone(backbone, num_users=1, num_items=1, dtype=dtype)
    assert {weight.dtype for weight in made.parameters()} == {dtype}


# ---- Broken folders ----


@pytest.fixture
def copy(backbone, saved, tmp_path) -> Path:
    """Return a folder to break."""
    for path in saved.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@gpt2_only
def test_missing_weights(copy):
    weights = load_file(copy / WEIGHTS)
    del weights["item_content.weight"], weights["backbone.transformer.wte.weight"]
    save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of this model .*'item_content.weight'.*no complete CLLM4Rec"):
        CLLM4RecForRecommendation.from_pretrained(copy)


@gpt2_only
@pytest.mark.parametrize("arguments", [{}, {"ignore_mismatched_sizes": True}])
def test_weights_of_another_shape(copy, arguments):
    weights = load_file(copy / WEIGHTS)
    weights["item_content.weight"] = weights["item_content.weight"][:-1].clone()
    save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has them in another shape: .*item_content.weight.*no complete CLLM4Rec"):
        CLLM4RecForRecommendation.from_pretrained(copy, **arguments)


@gpt2_only
@pytest.mark.parametrize("keep", [0, 4, 100, -1, -1000])
def test_weights_that_are_cut_off(copy, keep):
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="cannot be read .*: the file is cut off or no safetensors file; copy or download"):
        CLLM4RecForRecommendation.from_pretrained(copy)


@gpt2_only
def test_no_weights(copy):
    (copy / WEIGHTS).unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        CLLM4RecForRecommendation.from_pretrained(copy)


@gpt2_only
@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["a", "b"], "catalogue.parquet holds 2 items, the weights 12: it belongs to another checkpoint"),
        (list(range(12)), "holds other items, or in another order, than the weights were trained on"),
        ([f"item {number}" for number in range(12)], "holds other items, or in another order, than the weights were"),
    ],
)
def test_the_catalogue_of_another_checkpoint(copy, items, message):
    Catalogue(items).save(copy)
    with pytest.raises(ValueError, match=message):
        CLLM4RecForRecommendation.from_pretrained(copy)


@gpt2_only
def test_the_users_of_another_checkpoint(copy):
    KnownUsers(["ann"]).save(copy)
    with pytest.raises(ValueError, match="users.parquet holds 1 users, the weights 4: it belongs to another checkpoint"):
        CLLM4RecForRecommendation.from_pretrained(copy)
    KnownUsers(["a", "b", "c", "d"], np.array([0, 1, 1, 1, 1]), np.array([12])).save(copy)
    with pytest.raises(ValueError, match=r"users.parquet has histories with item 12, the catalogue goes from 0 to 11"):
        CLLM4RecForRecommendation.from_pretrained(copy)


@gpt2_only
def test_a_wrong_catalogue_is_not_saved_either(saved, tmp_path):
    model = CLLM4RecForRecommendation.from_pretrained(saved)
    model.catalogue = Catalogue(["a"])
    with pytest.raises(ValueError, match="catalogue.parquet holds 1 items, the weights 12"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@gpt2_only
@pytest.mark.parametrize("file", ["catalogue.parquet", "users.parquet"])
def test_ids_of_another_model_in_the_folder(backbone, copy, file):
    model = CLLM4RecForRecommendation.from_backbone(backbone, num_users=4, num_items=12)
    (copy / ("users.parquet" if file == "catalogue.parquet" else "catalogue.parquet")).unlink()
    before = sha256(copy / WEIGHTS)
    with pytest.raises(FileExistsError, match=f"holds a {file} of another model.*save into another folder, or delete"):
        model.save_pretrained(copy)
    assert sha256(copy / WEIGHTS) == before


@gpt2_only
def test_histories_are_left_out_when_asked(saved, recommender, tmp_path):
    recommender.save_pretrained(tmp_path)
    recommender.save_pretrained(tmp_path, include_histories=False)  # nothing of the first saving stays
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path)
    assert not loaded.users.has_histories
    assert recommender.users.has_histories
    with pytest.raises(ValueError, match="this model keeps no histories; also give histories"):
        loaded.recommend(users=["ann"], k=2)
    given = loaded.recommend(users=["ann"], histories=[["item 0", "item 3", "item 5"]], k=2)
    assert given.table.equals(recommender.recommend(users=["ann"], k=2).table)


# ---- from_backbone ----


@gpt2_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 2}, "give exactly one of num_users= and users="),
        ({"num_users": 2, "users": ["a", "b"], "num_items": 2}, "give exactly one of num_users= and users="),
        ({"num_users": 2}, "give exactly one of num_items= and catalogue="),
        ({"num_users": 2, "num_items": 1, "catalogue": ["a"]}, "give exactly one of num_items= and catalogue="),
        ({"num_users": 0, "num_items": 1}, "num_users is 0; it must be 1 or more"),
        ({"num_users": 1, "num_items": -3}, "num_items is -3; it must be 1 or more"),
        ({"num_users": 1, "catalogue": []}, "num_items is 0; it must be 1 or more"),
        ({"num_users": 1, "catalogue": "B1"}, "item_id is the string 'B1'; give a list of ids"),
        ({"users": ["a", "a"], "num_items": 1}, r"user_id names some ids twice: \['a'\]"),
        ({"num_users": 1, "num_items": 1, "id_offset": 9}, "id_offset is 9, below the backbone's vocabulary of 400 tokens"),
        ({"num_users": 1, "num_items": 1, "max_history": 9}, r"unknown field 'max_history'; did you mean 'max_history_tokens'"),
    ],
)
def test_counts_that_cannot_be(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        CLLM4RecForRecommendation.from_backbone(backbone, **arguments)


@gpt2_only
def test_external_ids_come_in_any_container(backbone):
    for wrap in (tuple, np.array, pa.array):
        model = CLLM4RecModel.from_backbone(backbone, users=wrap(["ann", "bob"]), catalogue=wrap([30, 10, 20]))
        assert (model.config.num_users, model.config.num_items) == (2, 3)
        assert model.catalogue.ids.ids_of([2, 0]) == [20, 30]
        assert model.config.catalogue_fingerprint == model.catalogue.ids.fingerprint
    table = pa.table({"item_id": [30, 10], "title": ["x", "y"]})
    assert CLLM4RecModel.from_backbone(backbone, num_users=1, catalogue=table).catalogue.titles([1]) == ["y"]


def test_ids_follow_the_larger_of_tokenizer_and_vocabulary(backbone, recommender, tokenizer):
    config = recommender.config
    assert config.id_offset >= max(config.vocab_size, tokenizer._text_size)
    assert config.id_offset == recommender.get_input_embeddings().num_embeddings
    assert tokenizer.item_token_id(11) == config.total_tokens - 1


@gpt2_only
def test_fresh_rows_obey_the_seed_alone(backbone):
    def rows(seed: int) -> torch.Tensor:
        return CLLM4RecModel.from_backbone(backbone, num_users=50, num_items=200, seed=seed).item_content.weight

    torch.manual_seed(1)
    first = rows(0)
    state = torch.random.get_rng_state()
    assert torch.equal(rows(0), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(rows(1), first)
    assert first.std().item() == pytest.approx(0.02, rel=0.1)  # as in the released code


# ---- The configuration ----


def test_configuration_round_trip(saved):
    config = CLLM4RecConfig.from_pretrained(saved)
    assert config.to_dict() == CLLM4RecConfig.from_dict(config.to_dict()).to_dict()
    assert type(config.text_config) is type(AutoConfig.for_model(config.text_config.model_type))
    assert config.total_tokens == config.id_offset + 4 + 12
    assert config.hidden_size == config.text_config.hidden_size
    assert config.context_length == config.text_config.max_position_embeddings


@gpt2_only
def test_a_configuration_that_cannot_be(saved):
    text_config = CLLM4RecConfig.from_pretrained(saved).text_config
    with pytest.raises(ValueError, match="id_offset is 399, below the backbone's vocabulary of 400 tokens.*at least 400"):
        CLLM4RecConfig(text_config, id_offset=399)
    for name in ("num_users", "num_items"):
        with pytest.raises(ValueError, match=f"{name} is -1; it must be 0 or more"):
            CLLM4RecConfig(text_config, **{name: -1})


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]"])
def test_broken_generation_settings(content, tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} cannot be read .*; copy or download the folder again"):
        saved_folder._read_generation_config(str(path))


@gpt2_only
def test_a_save_that_fails_leaves_the_folder_as_it_was(copy, recommender, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    monkeypatch.setattr("modeling_cllm4rec.core.recommender.save_parts", no_room)
    with pytest.raises(FileWriteError, match=f"{copy} cannot be written .*No space left.*; what was there before is unchanged"):
        recommender.save_pretrained(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@gpt2_only
def test_what_a_killed_save_left_is_removed_by_the_next(recommender, tmp_path):
    (tmp_path / ".saving-0123").mkdir()
    (tmp_path / ".saving-0123" / WEIGHTS).write_bytes(b"half")
    recommender.save_pretrained(tmp_path)
    assert not list(tmp_path.glob(".saving-*"))


@gpt2_only
def test_weights_may_be_read_by_the_readers_of_the_other_files(recommender, tmp_path):
    before = os.umask(0o027)
    try:
        recommender.save_pretrained(tmp_path, max_shard_size="30KB")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
