"""Updates of LC-Rec: items keep their semantic IDs, what is new is learned, what is refused, the drift report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from cold_items import HeldOutItems, hold_out_items
from transformers import AutoTokenizer

from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.alignment import align, load_semantic_ids
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.drift import code_drift, interaction_drift
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, nearest_codes
from modeling_cllm4rec.lcrec.update import UpdateArguments, UpdateStage, grow_to, update

MakeUpdate = Callable[..., UpdateArguments]
SHORT: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "max_text_tokens": 8,
    "tasks": ["seqrec", "item2index=0.2"],
    "eval_users": 20,
}


@pytest.fixture(scope="module")
def withheld(data: RecommendationData, tmp_path_factory: pytest.TempPathFactory) -> HeldOutItems:
    """Return the small world without a fifth of its items."""
    return hold_out_items(data, tmp_path_factory.mktemp("withheld") / "data", share=0.2, tuning_share=0.0, seed=1)


@pytest.fixture(scope="module")
def start(withheld: HeldOutItems, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of these items: read it, do not write into it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder, backbone, data = tmp_path_factory.mktemp("start"), str(tiny_backbones["gpt2"]), str(withheld.data.folder)
    values: dict[str, Any] = {"method": "rk-means", "encoder": backbone, "fields": ["title"], "max_text_tokens": 20}
    index_items(IndexArguments(data=data, output=str(folder / "index"), num_levels=2, codebook_size=8, **values))
    align(
        AlignArguments(
            data=data, output=str(folder / "model"), backbone=backbone, index=str(folder / "index"), num_beams=10, **SHORT
        )
    )
    return folder / "model"


@pytest.fixture
def update_arguments(start: Path, data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path) -> MakeUpdate:
    def make(**changes: Any) -> UpdateArguments:
        values = {"start": str(start), "data": str(data.folder), "output": str(tmp_path / "now")}
        return UpdateArguments(**{**SHORT, **values, "encoder": str(tiny_backbones["gpt2"]), **changes})

    return make


def load(folder: Path) -> LCRecForRecommendation:
    return LCRecForRecommendation.from_pretrained(folder)


def codes_by_id(model: LCRecForRecommendation) -> dict[Any, list[int]]:
    return dict(zip(model.catalogue.ids.array.to_pylist(), model.semantic_ids.codes.tolist(), strict=True))


def test_a_model_grows_to_its_data(start: Path, data: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    model = load(start)
    before, weights = codes_by_id(model), {name: one.clone() for name, one in model.state_dict().items()}
    growth = grow_to(model, data, encoder=str(tiny_backbones["gpt2"]))
    after = codes_by_id(model)
    assert {item: after[item] for item in before} == before and len({tuple(codes) for codes in after.values()}) == 40
    assert model.catalogue.table.drop_columns(["codes"]).equals(data.items)
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    train = data.histories("train")
    assert np.array_equal(model.users.items, train.items) and model.config.num_users == data.num_users
    model.check_catalogue()
    (version,) = model.config.index_history
    assert version == {
        "folder": "model",
        "num_items": 32,
        "codes_fingerprint": load(start).config.codes_fingerprint,
    }
    assert growth.new_items.sum() == 8 and not growth.new_users.any()
    new = {data.items["item_id"][int(item)].as_py() for item in np.flatnonzero(growth.new_items)}
    assert new == after.keys() - before.keys()
    assert growth.interactions.share_of_new_items is not None and growth.interactions.new > 0
    assert growth.codes.new_error is not None and growth.codes.old_error is not None


def test_the_same_data_change_nothing(start: Path, withheld: HeldOutItems) -> None:
    model = load(start)
    fingerprint = model.config.codes_fingerprint
    growth = grow_to(model, withheld.data)
    assert model.config.codes_fingerprint == fingerprint and model.config.index_history == []
    assert (growth.interactions.new, growth.interactions.new_items, growth.codes.conflicts) == (0, 0, 0)
    assert growth.interactions.popularity_shift is None and not growth.changed_users.any()


def test_update_goes_on(update_arguments: MakeUpdate, start: Path, data: RecommendationData, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}
    model, progress = update(update_arguments())
    assert progress.finished and {path: path.read_bytes() for path in start.rglob("*") if path.is_file()} == files
    old, again = load(start), load(tmp_path / "now")
    codes = codes_by_id(again)
    assert {item: codes[item] for item in codes_by_id(old)} == codes_by_id(old) and again.num_items == 40
    assert not torch.equal(again.backbone.get_input_embeddings().weight, old.backbone.get_input_embeddings().weight)
    assert again.config.search_beams == 10 and len(again.config.index_history) == 1
    assert again.recommend(histories=[[data.items["item_id"][0].as_py()]], k=5).table.num_rows == 5
    records = json.loads((tmp_path / "now" / "training.json").read_text())
    assert list(records) == ["index-items", "align", "update"]
    card = (tmp_path / "now" / "README.md").read_text()
    assert "## Training: update" in card and "The model before is model; semantic IDs of its items are unchanged" in card
    report = json.loads((tmp_path / "now" / "drift.json").read_text())
    assert report["version"] == 1 and report["previous"]["num_items"] == 32
    assert report["interactions"]["new_items"] == 8 and report["codes"]["used_after"] >= report["codes"]["used_before"]
    assert report["metrics"]["users"] > 0 and set(report["metrics"]["before"]) == {"hit_rate@10", "ndcg@10"}
    stopped = update_arguments(output=str(tmp_path / "resumed"), stop_after_steps=2)
    assert not update(stopped)[1].finished and not (tmp_path / "resumed" / "drift.json").exists()
    resumed, _ = update(dataclasses.replace(stopped, stop_after_steps=0, resume=True))
    assert all(torch.equal(one, resumed.state_dict()[name]) for name, one in model.state_dict().items())


def test_replay_is_a_share_of_what_is_not_new(
    update_arguments: MakeUpdate, start: Path, data: RecommendationData, tiny_backbones: dict[str, Path]
) -> None:
    def stage_of(replay: float) -> UpdateStage:
        model = load(start)
        growth = grow_to(model, data, encoder=str(tiny_backbones["gpt2"]))
        few = growth._replace(changed_users=np.arange(data.num_users) < 10)
        return UpdateStage(model, AutoTokenizer.from_pretrained(start), data, update_arguments(replay=replay), few)

    whole, half, none = (stage_of(replay) for replay in (1.0, 0.5, 0.0))
    everything = whole.documents(0)
    assert np.array_equal(everything, whole.corpus.documents(0)) and whole.is_new.any() and not whole.is_new.all()
    assert np.array_equal(none.documents(0), everything[whole.is_new[everything]])
    some = half.documents(0)
    assert set(none.documents(0)) < set(some) < set(everything) and not np.array_equal(some, half.documents(1))
    users, items = whole.corpus.subjects_of(none.documents(0))
    new = set(np.flatnonzero(~np.isin(data.items["item_id"], load(start).catalogue.ids.array)).tolist())
    assert all(0 <= user < 10 or item in new for user, item in zip(users.tolist(), items.tolist(), strict=True))


# ---- The report ----


def test_drift_by_hand() -> None:
    before = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    after = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 2], [2, 0], [2, 2]])
    drift, new = interaction_drift(before, after, np.array([True, True, False]), np.array([True, True, False]), gone_users=1)
    assert (drift.before, drift.after, drift.new, drift.gone_users) == (4, 8, 4, 1)
    assert drift.share_of_new_items == 0.75  # three of four with item 2
    assert drift.popularity_shift == 0.75  # (|.5 - .25| + |.5 - 0| + |0 - .75|) / 2
    # Four draws of two equal items: |X - 2| is 2, 1, 0, 1, 2 with chances of 1, 4, 6, 4, 1 of 16, .75 on average.
    assert drift.popularity_shift_by_chance == pytest.approx(0.75 / 4)
    assert (drift.head_before, drift.head_new) == (0.5, 0.25)  # item 0
    assert new.tolist() == [False, False, True, False, False, True, True, True]


def test_codes_by_hand(start: Path) -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.int32)
    drift = code_drift(codes, np.array([False, False, True]), 4)
    assert (drift.used_before, drift.used_after, drift.conflicts, drift.new_error) == ([1, 2], [2, 2], 0, None)
    indexer = load(start).require_indexer()
    vectors = np.random.default_rng(0).normal(size=(3, indexer.config.input_dim)).astype(np.float32)
    nearest = nearest_codes(indexer.latents(vectors), indexer.codebook_array)
    moved = nearest.copy()
    moved[1, 1] = (moved[1, 1] + 1) % 8
    last = np.array([False, True, True])
    found = code_drift(moved, last, 8, indexer, vectors[1:], np.array([0]), vectors[:1])
    sums = np.stack([indexer.codebook_array[level, moved[:, level]] for level in range(2)]).sum(0)
    errors = ((indexer.latents(vectors) - sums) ** 2).sum(1)
    assert found.conflicts == 1
    np.testing.assert_allclose([found.old_error, found.new_error], [errors[0], errors[1:].mean()], rtol=1e-5)


# ---- Bad input ----


def test_an_item_under_another_id(start: Path, data: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    model = load(start)
    item = model.catalogue.ids.array[3].as_py()
    place = data.items["item_id"].to_pylist().index(item)
    ids = data.items["item_id"].to_pylist()
    ids[place] = f"{item} new edition" if isinstance(item, str) else 10**6
    renamed = dataclasses.replace(data, items=data.items.set_column(0, "item_id", pa.array(ids, data.items["item_id"].type)))
    with pytest.raises(ValueError, match=f"renames 1 items of the model, .* {item!r} is now .*an id belongs to its semantic ID"):
        grow_to(model, renamed, encoder=str(tiny_backbones["gpt2"]))


def test_data_that_lack_an_item(start: Path, data: RecommendationData, withheld: HeldOutItems, tmp_path: Path) -> None:
    model = load(start)
    other = dataclasses.replace(withheld.data, items=withheld.data.items.slice(1))
    with pytest.raises(ValueError, match="lacks 1 item_id of the model: .*prepare it with keep_all_items=True"):
        grow_to(model, other)


def test_codes_of_another_index(start: Path, withheld: HeldOutItems, tmp_path: Path) -> None:
    """Rotated codes are as many, of the same items, and all different."""
    folder = tmp_path / "index"
    shutil.copytree(start.parent / "index", folder)
    semantic_ids, ids = SemanticIds.load(folder / "index.parquet")
    SemanticIds(np.roll(semantic_ids.codes, 1, axis=0), 8).save(folder / "index.parquet", ids)
    with pytest.raises(ValueError, match="index: the codes in .* are not those that index.json was written with"):
        load_semantic_ids(folder, withheld.data)
    model = tmp_path / "model"
    shutil.copytree(start, model)
    table = pq.read_table(model / "catalogue.parquet")
    codes = table["codes"].to_pylist()
    rotated = table.set_column(table.column_names.index("codes"), "codes", pa.array(codes[1:] + codes[:1], pa.list_(pa.int32())))
    Catalogue(rotated).save(model)
    with pytest.raises(ValueError, match="the semantic IDs of the items are not those that the weights were trained on"):
        load(model)


def test_the_tokenizer_of_another_model(
    start: Path, update_arguments: MakeUpdate, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(start, tmp_path / "start")
    AutoTokenizer.from_pretrained(tiny_backbones["gpt2"]).save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="so <a_0> should be token .* has None: it is not the tokenizer of this model"):
        update(update_arguments(start=str(tmp_path / "start")))
    with pytest.raises(ValueError, match="it is not the tokenizer of this model"):
        _ = load(tmp_path / "start").tokenizer


def test_what_update_refuses(update_arguments: MakeUpdate, start: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start is not set; it must be the folder"):
        update_arguments(start="")
    with pytest.raises(ValueError, match="replay is 2; it must lie between 0 and 1"):
        update_arguments(replay=2)
    with pytest.raises(FileNotFoundError, match="start: there is no folder nowhere"):
        update(update_arguments(start="nowhere"))
    with pytest.raises(ValueError, match="start and output are both"):
        update(update_arguments(output=str(start)))
    with pytest.raises(ValueError, match="is no LC-Rec model; its system has its own update"):
        update(update_arguments(start=str(pretrained)))
    templates = tmp_path / "templates.yaml"
    templates.write_text("seqrec:\n  - 'And after {history}'\n")
    with pytest.raises(ValueError, match="templates: .* was aligned with other templates than .*templates.yaml"):
        update(update_arguments(templates=str(templates)))


def test_users_may_go(start: Path, withheld: HeldOutItems) -> None:
    model = load(start)
    users = model.users
    ids = pa.array([*users.ids.array.to_pylist(), "nobody before" if users.ids.is_text else 10**6])
    model.users = KnownUsers(ids, np.append(users.indptr, len(users.items) + 1), np.append(users.items, 0).astype(np.int32))
    model.config.num_users += 1
    growth = grow_to(model, withheld.data)
    assert growth.interactions.gone_users == 1 and len(model.users) == withheld.data.num_users
