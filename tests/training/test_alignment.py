"""Alignment: what trains and what stays to the bit, resume, reload, processes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from modeling_cllm4rec.cllm4rec.arguments import PretrainArguments
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning
from modeling_cllm4rec.evaluation.searching import SearchingRecommender, evaluate_templates
from modeling_cllm4rec.lcrec import alignment
from modeling_cllm4rec.lcrec.alignment import AlignmentStage, align, load_semantic_ids, new_lcrec_model
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.objectives import TaughtObjective, response_nll
from modeling_cllm4rec.lcrec.parameters import choose_semantic_id_rows
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.training.parameters import merge_lora, trainable
from modeling_cllm4rec.training.stages import Part, part_loss

MakeAlign = Callable[..., AlignArguments]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def align_arguments(data: RecommendationData, tiny_backbones: dict[str, Path], index_folder: Path, tmp_path: Path) -> MakeAlign:
    """Two short epochs over a part of the documents."""

    def make(**changes: Any) -> AlignArguments:
        values: dict[str, Any] = {
            "data": str(data.folder),
            "output": str(tmp_path / "run"),
            "backbone": str(tiny_backbones["gpt2"]),
            "index": str(index_folder),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "max_text_tokens": 8,
            "tasks": ["seqrec", "item2index=0.3", "index2item=0.3", "fusionseqrec=0.1", "itemsearch=0.2", "preferenceobtain=0.2"],
            "eval_users": 20,
            "num_beams": 10,
        }
        return AlignArguments(**{**values, **changes})

    return make


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(LCRecForRecommendation.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("backbone", ["gpt2", "gpt2-untied", "llama"])
@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_words_stay_to_the_bit_and_index_tokens_learn(
    tune: str, backbone: str, align_arguments: MakeAlign, tiny_backbones: dict[str, Path]
) -> None:
    arguments = align_arguments(tune=tune, backbone=str(tiny_backbones[backbone]), num_train_epochs=1)
    start = new_lcrec_model(RecommendationData.load(arguments.data), arguments)[0].state_dict()
    model, progress = align(arguments)
    assert progress.finished
    config, after = model.config, weights_of(arguments.run_folder)
    for parameter in model.id_parameters:
        name = next(name for name, value in model.named_parameters() if value is parameter)
        rows = torch.arange(len(parameter))
        index = (rows >= config.first_index_token) & (rows <= config.last_index_token)
        assert torch.equal(after[name][~index], start[name][~index])
        assert not torch.equal(after[name][index], start[name][index])
        own = AutoModelForCausalLM.from_pretrained(tiny_backbones[backbone]).get_input_embeddings().weight
        if parameter is model.get_input_embeddings().weight:
            assert torch.equal(after[name][: config.first_index_token], own[: config.first_index_token])
    body = [name for name in after if "mlp" in name and name.endswith("weight")]
    assert body and all(torch.equal(after[name], start[name]) == (tune == "frozen") for name in body)


def test_words_train_with_lora_where_asked(align_arguments: MakeAlign, tiny_backbones: dict[str, Path]) -> None:
    """The released LoRA trains both token matrices in full."""
    backbone = str(tiny_backbones["llama"])
    arguments = align_arguments(tune="lora", lora_dropout=0.05, train_words=True, backbone=backbone, num_train_epochs=1)
    start = new_lcrec_model(RecommendationData.load(arguments.data), arguments)[0].state_dict()
    model, _ = align(arguments)
    after, first = weights_of(arguments.run_folder), model.config.first_index_token
    for parameter in model.id_parameters:
        name = next(name for name, value in model.named_parameters() if value is parameter)
        changed = (after[name] != start[name]).any(1)
        assert changed[first:].any() and changed[:first].any()


def test_training_learns_and_the_best_epoch_is_kept(align_arguments: MakeAlign) -> None:
    arguments = align_arguments(
        num_train_epochs=4, tasks=["seqrec"], learning_rate=1e-2, backbone_learning_rate=1e-3, average_decay=0.9
    )
    model, progress = align(arguments)
    values = [epoch["selection"] for epoch in progress.history]
    assert progress.best == max(values)
    data = RecommendationData.load(arguments.data)
    stage = AlignmentStage(model, AutoTokenizer.from_pretrained(arguments.run_folder), data, arguments)
    assert stage.validate(arguments.num_train_epochs - 1)["selection"] == pytest.approx(progress.best)


@pytest.mark.parametrize("changes", [{}, {"tune": "lora"}, {"average_decay": 0.9, "gradient_accumulation_steps": 2}])
def test_resumed_is_bit_equal(changes: dict[str, Any], align_arguments: MakeAlign, tmp_path: Path) -> None:
    whole = align_arguments(output=str(tmp_path / "whole"), **changes)
    _, progress = align(whole)
    for number, stop in enumerate((2, progress.history[0]["step"], progress.history[0]["step"] + 1)):
        torch.manual_seed(number)
        assert not align(align_arguments(stop_after_steps=stop, resume=number > 0, **changes))[1].finished
    rest = align_arguments(resume=True, **changes)
    assert align(rest)[1].finished
    first, second = weights_of(whole.run_folder), weights_of(rest.run_folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_parts_are_one_batch(align_arguments: MakeAlign, still_backbone: Path, tmp_path: Path) -> None:
    folders = []
    for size, parts in ((16, 1), (4, 4)):
        arguments = align_arguments(
            backbone=str(still_backbone),
            output=str(tmp_path / str(parts)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            num_train_epochs=1,
        )
        align(arguments)
        folders.append(weights_of(arguments.run_folder))
    for name, value in folders[0].items():
        torch.testing.assert_close(folders[1][name], value, rtol=1e-4, atol=2e-5)


TWO_PROCESSES = """
import json, os, sys
import torch
from modeling_cllm4rec.lcrec.arguments import AlignArguments
from modeling_cllm4rec.lcrec.alignment import align

torch.set_num_threads(1)
assert align(AlignArguments(**json.loads(sys.argv[1])))[1].finished
os.write(1, f"rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()}\\n".encode())
"""


@pytest.mark.slow
def test_two_processes_are_a_larger_batch(align_arguments: MakeAlign, still_backbone: Path, tmp_path: Path) -> None:
    """By torchrun, at half the batch size; the last batch of an epoch leaves odd parts."""
    one, two = (
        align_arguments(backbone=str(still_backbone), output=str(tmp_path / str(size)), per_device_train_batch_size=size)
        for size in (16, 8)
    )
    _, progress = align(one)
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "two.py")]
        + [json.dumps(dataclasses.asdict(two))],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sorted(line for line in ended.stdout.splitlines() if line.startswith("rank")) == ["rank 0 of 2", "rank 1 of 2"]
    theirs = weights_of(two.run_folder)
    for name, value in weights_of(one.run_folder).items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=2e-5)
    record = json.loads((two.run_folder / "training.json").read_text(encoding="utf-8"))["align"]
    assert [epoch["step"] for epoch in record["history"]] == [epoch["step"] for epoch in progress.history]


def test_bf16_trains_float32_weights(align_arguments: MakeAlign, tmp_path: Path) -> None:
    runs = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision
        runs.append(align(align_arguments(precision=precision, num_train_epochs=1, output=str(tmp_path / precision)))[1])
    full, half = runs
    assert half.finished and half.history[0]["step"] == full.history[0]["step"]
    assert half.history[0]["train/align_nll"] != full.history[0]["train/align_nll"]
    assert half.history[0]["train/align_nll"] == pytest.approx(full.history[0]["train/align_nll"], rel=0.05)
    assert {one.dtype for one in weights_of(tmp_path / "bf16").values()} == {torch.float32}


@pytest.mark.parametrize(("backbone", "tune"), [("gpt2", "full"), ("llama", "lora")])
def test_gradient_checkpointing_computes_the_same(
    backbone: str, tune: str, align_arguments: MakeAlign, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    """With dropout on, where the backbone has any: the second computation draws the same numbers."""
    results = []
    for switched in (False, True):
        arguments = align_arguments(
            backbone=str(tiny_backbones[backbone]),
            output=str(tmp_path / str(switched)),
            tune=tune,
            gradient_checkpointing=switched,
            num_train_epochs=1,
        )
        model, _ = align(arguments)
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.backbone.modules()) == switched
        results.append(weights_of(arguments.run_folder))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-6)


def test_patience_stops_early_and_of_equal_epochs_the_first_is_kept(
    align_arguments: MakeAlign, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, seen = [1.0, 3.0, 2.0, 3.0, 9.0], []

    def validate(stage: AlignmentStage, epoch: int) -> dict[str, float]:
        seen.append({name: one.clone() for name, one in stage.model.state_dict().items()})
        return {"selection": values[epoch]}

    monkeypatch.setattr(AlignmentStage, "validate", validate)
    arguments = align_arguments(num_train_epochs=5, early_stopping_patience=2, tasks=["seqrec"])
    _, progress = align(arguments)
    assert (progress.epoch, progress.best_epoch, progress.finished) == (4, 1, True)
    saved = weights_of(arguments.run_folder)
    assert all(torch.equal(value, seen[1][name]) for name, value in saved.items())
    assert not all(torch.equal(value, seen[3][name]) for name, value in saved.items())
    _, resumed = align(align_arguments(num_train_epochs=5, early_stopping_patience=2, tasks=["seqrec"], resume=True))
    assert resumed.epoch == 4 and len(seen) == 4  # an early end is an end


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_merged_lora_computes_the_same_and_reloads(
    backbone: str, align_arguments: MakeAlign, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    arguments = align_arguments(tune="lora", backbone=str(tiny_backbones[backbone]))
    model = new_lcrec_model(RecommendationData.load(arguments.data), arguments)[0].eval()
    ids = torch.tensor([[3, 4, model.config.first_index_token, model.config.last_index_token]])

    @torch.no_grad()
    def logits(of: LCRecForRecommendation) -> torch.Tensor:
        return of.eval()(ids, torch.ones_like(ids)).logits

    before, names = logits(model), [name for name, _ in model.named_parameters()]
    adapted = choose_semantic_id_rows(model, arguments)
    assert torch.equal(logits(model), before)  # the second LoRA matrix starts at zero
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    moved = logits(model)
    assert (moved - before).abs().max() > 1e-3
    merge_lora(adapted)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(logits(model), moved, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(LCRecForRecommendation.from_pretrained(tmp_path / "merged")), logits(model))


def test_a_decoder_of_bert(align_arguments: MakeAlign, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    """Its output layer has two layers, and its positions are absolute."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **shape, max_position_embeddings=128, is_decoder=True))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    arguments = align_arguments(backbone=str(tmp_path / "bert"), learning_rate=1e-2, backbone_learning_rate=1e-3)
    model, progress = align(arguments)
    assert progress.finished and progress.history[1]["train/align_nll"] < progress.history[0]["train/align_nll"] - 0.1
    loaded, request = LCRecForRecommendation.from_pretrained(arguments.run_folder), {"k": 5, "num_beams": 40}
    assert model.users is not None and not loaded.training
    users = model.users.ids.ids_of([0, 1])
    found, exact = (loaded.recommend(users=users, **how).to_pandas() for how in (request, {"k": 5, "scoring": "all"}))
    assert found["item"].tolist() == exact["item"].tolist()
    np.testing.assert_allclose(found["score"], exact["score"], rtol=1e-4)
    assert found["item"].tolist() == model.eval().recommend(users=users, **request).to_pandas()["item"].tolist()


def test_the_loss_is_the_mean_over_response_tokens_by_hand(align_arguments: MakeAlign) -> None:
    arguments = align_arguments()
    data = RecommendationData.load(arguments.data)
    model, tokenizer = new_lcrec_model(data, arguments)
    model.eval()
    with pytest.warns(UnorderedHistoriesWarning, match="LC-Rec reads it; reorder=1 shuffles every history"):
        stage = AlignmentStage(model, tokenizer, data, arguments)
    step = stage.steps(0)[0]
    output = part_loss(stage, step)
    total, count = 0.0, 0
    for ids, counted in zip(*stage.corpus.rows(step.documents, 0), strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
        for place in np.flatnonzero(counted):
            total -= float(logits[place - 1, ids[place]])
            count += 1
    assert output.tokens == count
    assert float(output.nll) == pytest.approx(total, rel=1e-4)
    assert float(output.loss) == pytest.approx(total / count, rel=1e-4)


def test_evaluation_over_templates_is_the_mean(align_arguments: MakeAlign) -> None:
    arguments = align_arguments(num_train_epochs=1)
    model, _ = align(arguments)
    data = RecommendationData.load(arguments.data)
    shared = {"metrics": ["hit_rate@5", "ndcg@10"], "progress": False, "n_resamples": 20, "slice_by": data.histories("train")}
    both = evaluate_templates(model, data, "test", [0, 3], {"num_beams": 10}, **shared)
    single = [evaluate_templates(model, data, "test", [one], {"num_beams": 10}, **shared) for one in (0, 3)]
    for name in both.metrics:
        assert both.metrics[name] == pytest.approx(np.mean([one.metrics[name] for one in single]))
        of_slices = [one.slices["popularity"]["0-4"].metrics[name] for one in (both, *single)]
        assert of_slices[0] == pytest.approx(np.mean(of_slices[1:]))
    assert both.protocol.decoding == "constrained search with 10 beams, mean over 2 templates"
    exact = evaluate_templates(model, data, "test", [0], {"scoring": "all"}, **shared)
    wide = evaluate_templates(model, data, "test", [0], {"num_beams": data.num_items}, **shared)
    assert exact.metrics == wide.metrics  # as many beams as items are exact
    assert both.illegal_items == exact.illegal_items == 0
    assert SearchingRecommender(model, {"scoring": "all"}).decoding == "all indices scored, template 0"
    with pytest.raises(ValueError, match="templates is empty"):
        evaluate_templates(model, data, "test", [], {})


def test_a_writer_writes_on_the_device_of_the_run(
    align_arguments: MakeAlign, tiny_backbones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_backbones["gpt2"], n_positions=4096))
    writer.save_pretrained(tmp_path / "writer")
    AutoTokenizer.from_pretrained(tiny_backbones["gpt2"]).save_pretrained(tmp_path / "writer")
    devices, write = [], alignment.write_intentions

    def noted(*data: Any, **settings: Any) -> Any:
        devices.append(settings["device"])
        return write(*data, **settings, max_new_tokens=2)

    monkeypatch.setattr(alignment, "write_intentions", noted)
    arguments = align_arguments(intention_writer=str(tmp_path / "writer"), tasks=["itemsearch=0.2", "preferenceobtain=0.2"])
    progress = align(arguments)[1]
    assert progress.finished and devices == [str(PartialState().device)]
    assert "written by writer (" in (arguments.run_folder / "README.md").read_text(encoding="utf-8")
    lines = (arguments.run_folder / "intentions.jsonl").read_text(encoding="utf-8").splitlines()
    assert 100 < len(lines) <= 340  # 40 items; at most three preferences and two intentions of each of 60 users


def test_an_item_head_needs_documents_of_seqrec(align_arguments: MakeAlign) -> None:
    """Where each user has one training item, seqrec is left out and an item head could not learn."""
    arguments = align_arguments(item_head="free")
    data = RecommendationData.load(arguments.data)
    train = data.interactions.filter(pc.equal(data.interactions["split"], "train"))
    first = np.unique(train["user_index"].to_numpy(), return_index=True)[1]
    data = dataclasses.replace(data, interactions=train.take(first))
    model, tokenizer = new_lcrec_model(data, arguments)
    with pytest.raises(ValueError, match="has an item head and teacher is ''; both learn from seqrec, which has no documents"):
        AlignmentStage(model, tokenizer, data, arguments)


def test_users_without_training_items_are_validated_without_a_list(align_arguments: MakeAlign) -> None:
    """They are in no document and have no prompt. Their metrics are 0, in training as in `evaluate`."""
    arguments = align_arguments(item_head="free", teacher="popularity", num_train_epochs=1)
    data, new = RecommendationData.load(arguments.data), [0, 7, 59]
    of_new = np.isin(data.interactions["user_index"].to_numpy(), new)
    later = np.where(of_new, "validation", data.interactions["split"].to_numpy(zero_copy_only=False))
    column = data.interactions.column_names.index("split")
    data = dataclasses.replace(data, interactions=data.interactions.set_column(column, "split", pa.array(later)))
    model, tokenizer = new_lcrec_model(data, arguments)
    stage = AlignmentStage(model, tokenizer, data, dataclasses.replace(arguments, eval_users=None))
    assert not np.isin(stage.corpus.subjects_of(stage.documents(0))[0], new).any()
    for step in stage.steps(0):
        stage.inputs(Part(step.kind, step.documents, len(step.documents), 0, 0))
    shared = {"metrics": ["hit_rate@10", "ndcg@10"], "progress": False, "n_resamples": 0}
    with pytest.warns(UserWarning, match=r"^3 of \d+ users got no items"):
        report = evaluate_templates(model, data, "validation", [0], {}, **shared)
    assert not report.per_user["hit_rate@10"][np.isin(report.user_indices, new)].any()
    with pytest.warns(UserWarning, match=r"^3 of \d+ users got no items"):
        assert stage.validate(0)["selection"] == report.metrics["ndcg@10"]


def test_illegal_items_are_found_without_the_tree(align_arguments: MakeAlign) -> None:
    """A tree whose leaves name other items, or a path that is no item's: the evaluation reads what was written."""
    data = RecommendationData.load(align_arguments().data)
    model, _ = new_lcrec_model(data, align_arguments())
    shared = {"metrics": ["hit_rate@10", "ndcg@10"], "progress": False, "n_resamples": 0}
    right = evaluate_templates(model, data, "test", [0], {"num_beams": 10}, **shared)
    trie = model.trie
    trie.leaf_items = trie.leaf_items.roll(1)
    again = evaluate_templates(model, data, "test", [0], {"num_beams": 10}, **shared)
    assert (again.metrics, again.illegal_items) == (right.metrics, 0)
    free = np.setdiff1d(np.arange(64), model.semantic_ids.codes @ np.array([8, 1]))[:1]
    model.__dict__["trie"] = ItemTrie(np.concatenate([model.semantic_ids.codes[1:], [[free[0] // 8, free[0] % 8]]]), 8)
    with pytest.warns(UserWarning, match="recommendations are invalid, duplicate or seen items"):
        wrong = evaluate_templates(model, data, "test", [0], {"num_beams": 39}, metrics=["hit_rate@39"], progress=False)
    assert wrong.illegal_items is not None and wrong.illegal_items > 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"index": ""}, "index is not set; name the folder"),
            ({"backbone": ""}, "backbone is not set"),
            ({"tasks": ["seqrek"]}, "tasks: 'seqrek' is no task; the tasks are seqrec, item2index"),
            ({"tasks": ["seqrec=2"]}, r"tasks: 'seqrec=2' .* a share in \(0, 1\]"),
            ({"tasks": ["seqrec=many"]}, "tasks: 'seqrec=many' has no number after the ="),
            ({"tasks": []}, "tasks is empty"),
            ({"num_beams": 9}, "num_beams is 9; validation ranks 10 items"),
            ({"eval_users": 0}, "eval_users is 0; it must be 1 or more"),
        ],
    )
    def test_arguments(self, align_arguments: MakeAlign, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            align_arguments(**changes)

    def test_fewer_items_than_the_selection_ranks(self, align_arguments: MakeAlign, data: RecommendationData) -> None:
        few = dataclasses.replace(data, items=data.items.slice(0, 9))
        with pytest.raises(ValueError, match="the catalogue has 9 items; ndcg@10 selects the epoch and needs 10 or more"):
            new_lcrec_model(few, align_arguments())

    def test_no_index(self, align_arguments: MakeAlign, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="index: there is no .*index.parquet; run `cllm4rec index-items` first"):
            align(align_arguments(index=str(tmp_path)))

    def test_an_index_of_another_catalogue(self, align_arguments: MakeAlign, data: RecommendationData, tmp_path: Path) -> None:
        SemanticIds(np.arange(40)[:, None] // np.array([8, 1]) % 8, 8).save(
            tmp_path / "index.parquet", IdMap([f"other {number}" for number in range(40)], "item_id")
        )
        with pytest.raises(ValueError, match="has the semantic IDs of another catalogue than"):
            load_semantic_ids(tmp_path, data)

    def test_an_index_folder_that_is_cut_off(self, data: RecommendationData, index_folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(index_folder, copy)
        (copy / "index.json").write_text('{"item_enc')
        with pytest.raises(ValueError, match="index: .*copy is damaged .*; run `cllm4rec index-items` again"):
            load_semantic_ids(copy, data)
        (copy / "index.json").unlink()
        with pytest.raises(FileNotFoundError, match="index: there is no .*index.json; the index is not finished"):
            load_semantic_ids(copy, data)

    def test_a_writer_that_is_none(self, align_arguments: MakeAlign, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="intention_writer: .*nothing is no folder with a language model"):
            align(align_arguments(intention_writer=str(tmp_path / "nothing")))

    def test_a_resumed_run_whose_templates_are_gone(self, align_arguments: MakeAlign, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="templates: there is no file .*gone.yaml; a resumed run needs the same one"):
            align_arguments(templates=str(tmp_path / "gone.yaml")).fingerprints()

    def test_a_backbone_that_is_none(self, align_arguments: MakeAlign, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="backbone: .* is no folder with a language model"):
            align(align_arguments(backbone=str(tmp_path / "nothing")))

    @pytest.mark.parametrize("base", ["gpt2", "some/other-base"])
    def test_an_adapter_in_place_of_a_backbone(
        self, base: str, align_arguments: MakeAlign, tiny_backbones: dict[str, Path], tmp_path: Path
    ) -> None:
        base = str(tiny_backbones.get(base, base))
        adapted = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_backbones["gpt2"]),
            peft.LoraConfig(target_modules="all-linear", fan_in_fan_out=True),
        )
        adapted.peft_config["default"].base_model_name_or_path = base
        adapted.save_pretrained(tmp_path / "adapter")
        arguments = align_arguments(backbone=str(tmp_path / "adapter"))
        message = (
            f"backbone: .*adapter is an adapter .* of the base '{base}', no whole language model; fold it into that base first"
        )
        with pytest.raises(ValueError, match=message):
            align(arguments)
        with pytest.raises(ValueError, match=message):
            pretrain(PretrainArguments(data=arguments.data, output=arguments.output, backbone=arguments.backbone))
        with pytest.raises(ValueError, match=message):
            CLLM4RecForRecommendation.from_backbone(tmp_path / "adapter", num_users=1, num_items=2)
        index = SemanticIds(np.array([[0], [1]]), 2)
        with pytest.raises(ValueError, match=message):
            LCRecForRecommendation.from_backbone(
                tmp_path / "adapter", semantic_ids=index, first_index_token=999, catalogue=["p", "q"]
            )

    def test_resuming_with_changed_templates(self, align_arguments: MakeAlign, tmp_path: Path) -> None:
        file = tmp_path / "templates.yaml"
        file.write_text("answer: 'Answer:'\n", encoding="utf-8")
        given = {"templates": str(file), "init_tokens": "random"}
        align(align_arguments(stop_after_steps=2, **given))
        assert align(align_arguments(stop_after_steps=3, resume=True, **given))[1].step == 3
        file.write_text("answer: 'The answer:'\n", encoding="utf-8")
        with pytest.raises(ValueError, match="had other arguments .*'templates_sha256'"):
            align(align_arguments(resume=True, **given))

    def test_an_output_folder_that_is_a_data_folder(
        self, align_arguments: MakeAlign, data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(data_folder, copy)
        with pytest.raises(FileExistsError, match="output: .*copy is a data folder, which is never written into"):
            align(align_arguments(output=str(copy), intention_writer=str(tiny_backbones["llama"])))
        assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in data_folder.iterdir())

    def test_resuming_with_another_index(self, align_arguments: MakeAlign, data: RecommendationData, tmp_path: Path) -> None:
        align(align_arguments(stop_after_steps=2, init_tokens="random"))
        shape = {"num_levels": 2, "codebook_size": 8, "method": "random", "seed": 5}
        index_items(IndexArguments(data=str(data.folder), output=str(tmp_path / "other"), **shape))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="had other arguments .*'index_sha256'"):
            align(align_arguments(resume=True, init_tokens="random", index=str(tmp_path / "other")))


def test_a_teacher_adds_its_cross_entropy_over_the_codes(data: RecommendationData, align_arguments: MakeAlign) -> None:
    """Against plain loops; with weight 0 the loss and the gradient are those without a teacher."""
    arguments = align_arguments(teacher="ease", teacher_settings=["regularization=10"], teacher_weight=2.0, dropout=0)
    model, tokenizer = new_lcrec_model(data, arguments)
    choose_semantic_id_rows(model, arguments)
    model.eval()
    stage = AlignmentStage(model, tokenizer, data, arguments)
    documents = stage.corpus.documents(0)[::40]
    part = Part("align", documents, len(documents), epoch=0, number=0, idle=False)
    inputs = stage.inputs(part)
    places, shares = inputs["item_places"], inputs["soft_shares"]
    assert len(places) > 5 and set(shares.sum(-1).round(decimals=4).unique().tolist()) <= {0.0, 1.0}
    count = stage.count_items(part, inputs)
    taught = stage.objective(part)(model, **inputs, num_items_in_batch=count)
    logits = model.backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.log_softmax(-1)
    expected, size = 0.0, model.config.codebook_size
    for (document, place), of_item in zip(places.tolist(), shares, strict=True):
        for level, of_level in enumerate(of_item):
            start = model.config.first_index_token + level * size
            expected -= float(of_level @ logits[document, place + level - 1, start : start + size])
    own = {name: tensor for name, tensor in inputs.items() if not name.startswith(("soft", "item"))}
    plain = response_nll(model, **own, num_items_in_batch=count)
    assert float(taught.loss.detach()) == pytest.approx(float(plain.loss.detach()) + 2 * expected / count, rel=1e-5)
    assert (float(taught.nll), int(taught.tokens)) == (pytest.approx(float(plain.nll), rel=1e-6), int(plain.tokens))
    without = TaughtObjective(0.0)(model, **inputs, num_items_in_batch=count)
    weights = list(trainable(model).values())
    for one, other in zip(
        torch.autograd.grad(plain.loss, weights, allow_unused=True),
        torch.autograd.grad(without.loss, weights, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_alignment_with_a_teacher(align_arguments: MakeAlign) -> None:
    model, progress = align(align_arguments(teacher="ease", num_train_epochs=1))
    assert progress.finished and LCRecForRecommendation.from_pretrained(align_arguments().output).num_items == model.num_items


def test_a_teacher_without_sequences_is_refused(align_arguments: MakeAlign) -> None:
    with pytest.raises(ValueError, match=r"teacher is 'ease', which teaches seqrec, but tasks is \['item2index'\]; add seqrec"):
        align_arguments(teacher="ease", tasks=["item2index"])


def test_an_item_head_learns_next_to_the_semantic_ids(align_arguments: MakeAlign, data: RecommendationData) -> None:
    """The loss is that of the codes plus that of the items, by hand: items of the history are out of the softmax."""
    arguments = align_arguments(item_head="text", item_head_weight=3, teacher="ease", teacher_weight=2, tasks=["seqrec"])
    model, tokenizer = new_lcrec_model(data, arguments)
    choose_semantic_id_rows(model, arguments)
    model.eval()
    stage = AlignmentStage(model, tokenizer, data, arguments)
    documents = stage.corpus.documents(0)[::40]
    part = Part("align", documents, len(documents), epoch=0, number=0, idle=False)
    inputs = stage.inputs(part)
    count = stage.count_items(part, inputs)
    head = model.item_head
    assert head is not None and head.projection is not None and model.config.item_inputs
    rows = head.rows.weight + head.text_vectors @ head.projection.weight.T
    body = model.backbone.base_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    expected = 0.0
    for number, (document, place) in enumerate(inputs["item_places"].tolist()):
        logits = body[document, place - 1] @ rows.T
        history = inputs["item_histories"][number]
        logits[history[history >= 0]] = float("-inf")
        logp = logits.log_softmax(-1)
        expected -= float(logp[inputs["item_labels"][number]])
        items, probs = inputs["soft_items"][number], inputs["soft_probs"][number]
        expected -= 2 * float(probs[items >= 0] @ logp[items[items >= 0]])
    both = stage.objective(part)(model, **inputs, num_items_in_batch=count)
    codes = {name: tensor for name, tensor in inputs.items() if name not in ("item_labels", "item_histories")}
    alone = stage.objective(part)(model, **codes, num_items_in_batch=count)
    assert float(both.loss.detach()) == pytest.approx(float(alone.loss.detach()) + 3 * expected / count, rel=1e-5)
    assert float(both.nll) == pytest.approx(float(alone.nll))


@pytest.mark.parametrize(("head", "tune"), [("text", "full"), ("free", "frozen")])
def test_a_trained_item_head_is_saved_and_recommends(align_arguments: MakeAlign, head: str, tune: str) -> None:
    arguments = align_arguments(item_head=head, tune=tune, tasks=["seqrec"])
    data = RecommendationData.load(arguments.data)
    start = new_lcrec_model(data, arguments)[0].state_dict()
    model, progress = align(arguments)
    loaded = LCRecForRecommendation.from_pretrained(arguments.run_folder)
    assert loaded.config.scoring == "head" and (loaded.config.item_head_text_size > 0) == (head == "text")
    state = loaded.state_dict()
    assert not torch.equal(state["item_head.rows.weight"], start["item_head.rows.weight"])
    for name in state:
        if name.startswith("item_head.text"):
            assert torch.equal(state[name], start[name])
    protocol = evaluate_templates(loaded, data, "validation", [0], {}, metrics=["ndcg@10"], max_users=20, progress=False).protocol
    assert protocol.decoding == "all items scored by the item head, template 0"
    stage = AlignmentStage(model, AutoTokenizer.from_pretrained(arguments.run_folder), data, arguments)
    assert stage.validate(arguments.num_train_epochs - 1)["selection"] == pytest.approx(progress.best)


def test_an_item_head_that_cannot_learn_is_refused(align_arguments: MakeAlign, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"item_head is 'free', which learns from seqrec, but tasks is \['item2index'\]"):
        align_arguments(item_head="free", tasks=["item2index"])
    with pytest.raises(ValueError, match="item_head_weight is -1"):
        align_arguments(item_head="free", item_head_weight=-1)
    arguments = align_arguments(item_head="text")
    textless = tmp_path / "index"
    shutil.copytree(arguments.index, textless)
    (textless / "embeddings.parquet").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"item_head is 'text', but .*index has no embeddings.parquet: its codes come from no texts"
    ):
        align(align_arguments(item_head="text", index=str(textless)))
