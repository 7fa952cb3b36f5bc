"""New items settle: their rows train, nothing else does; `update` grows a model to a data folder and goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cold_items import HeldOutItems, hold_out_items

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.new_item_training import NewRowTraining, add_items, train_new_rows
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments, tokenize_template
from modeling_cllm4rec.cllm4rec.update import UpdateArguments, grow_to, update
from modeling_cllm4rec.core.catalogue import KnownUsers
from modeling_cllm4rec.core.language_model import end_tokens, word_head
from modeling_cllm4rec.core.prompt_assembly import build_input_ids
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

Loaded = tuple[CLLM4RecForRecommendation, CLLM4RecTokenizer]
NEW = [
    {"item_id": "new 1", "title": "a red lamp", "description": "for the desk"},
    {"item_id": "new 2", "title": "green tea, strong", "description": None},
]


@pytest.fixture
def loaded(pretrained: Path) -> Loaded:
    return CLLM4RecForRecommendation.from_pretrained(pretrained), CLLM4RecTokenizer.from_pretrained(pretrained)


def state(model: CLLM4RecForRecommendation) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def test_only_new_rows_train(loaded: Loaded) -> None:
    model, tokenizer = loaded
    model.add_items(NEW, start="words", tokenizer=tokenizer)
    model.item_content.requires_grad_(False)
    model.train()
    before = state(model)
    nats = train_new_rows(model, tokenizer, 40, NewRowTraining(passes=8, lr=0.02), progress=False)
    after = state(model)
    assert len(nats) == 8 and nats[-1] < nats[0]
    for name, one in before.items():
        if name == "item_content.weight":
            assert torch.equal(after[name][:40], one[:40]) and not torch.equal(after[name][40:], one[40:])
        else:
            assert torch.equal(after[name], one)
    assert model.training and not model.item_content.weight.requires_grad and model.user_content.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_new_rows_train_as_in_a_plain_loop(loaded: Loaded, pretrained: Path) -> None:
    """One text of two tokens and one of three; no dropout; AdamW on a matrix whose old rows get no gradient."""
    (model, tokenizer), other = loaded, CLLM4RecForRecommendation.from_pretrained(pretrained)
    items = [{"item_id": f"new {number}", "title": title} for number, title in enumerate(("a red lamp", "green tea, strong"))]
    for one in (model, other):
        one.add_items(items, start="words", tokenizer=tokenizer)
    nats = train_new_rows(model, tokenizer, 40, NewRowTraining(passes=3, lr=0.02, lambda_c=0.5, batch_size=2), progress=False)
    segments = tokenize_template(Prompts().item_text, tokenizer, column="title")
    rows, starts = [], []
    for number, item in enumerate(items):
        prompt = build_input_ids(segments, item=other.config.id_offset + other.config.num_users + 40 + number)
        words = tokenizer(item["title"], add_special_tokens=False)["input_ids"] + end_tokens(tokenizer)
        rows.append(torch.tensor([*prompt, *words]))
        starts.append(len(prompt))
    ids = torch.nn.utils.rnn.pad_sequence(rows, True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True)
    table = other.eval().item_content.weight
    optimizer = torch.optim.AdamW([table], lr=0.02, weight_decay=0.0)
    found = []
    for _ in range(3):
        words, losses = 0, []
        for row, start in enumerate(starts):
            length = int(mask[row].sum())
            states = other.hidden_states(ids, mask, "content")[row, start - 1 : length - 1]
            logits = word_head(other.backbone)(states)
            losses.append(torch.nn.functional.cross_entropy(logits, ids[row, start:length], reduction="sum"))
            words += length - start
        gap = (table[40:] - other.item_collaborative.weight[40:]).square().sum() * 0.5 / 2
        ((sum(losses) + gap) / len(rows)).backward()
        table.grad[:40] = 0
        optimizer.step()
        optimizer.zero_grad()
        found.append(sum(loss.item() for loss in losses) / words)
    assert nats == pytest.approx(found, rel=1e-5)
    torch.testing.assert_close(model.item_content.weight, table, rtol=1e-5, atol=1e-6)


def test_content_rows_are_pulled_to_collaborative_ones(loaded: Loaded) -> None:
    model, tokenizer = loaded
    model.add_items(NEW, start="words", tokenizer=tokenizer)
    with torch.no_grad():
        model.item_collaborative.weight[40:] += 1.0
    gaps = []
    for lambda_c in (0.0, 100.0):
        train_new_rows(model, tokenizer, 40, NewRowTraining(passes=20, lr=0.02, lambda_c=lambda_c), progress=False)
        gaps.append((model.item_collaborative.weight - model.item_content.weight)[40:].norm().item())
    assert gaps[1] < gaps[0] * 0.8


def test_settling_changes_no_recommendation(loaded: Loaded, pretrained: Path) -> None:
    """As the help of `add-items` says: it is for what the content LM writes of new items."""
    scores = []
    for passes in (0, 5):
        model = CLLM4RecForRecommendation.from_pretrained(pretrained)
        model.config.recommendation_prompts = recommendation_segments(Prompts(), loaded[1])
        add_items(model, loaded[1], pa.Table.from_pylist(NEW), settling=NewRowTraining(passes=passes, lr=0.1), progress=False)
        scores.append(model.recommend(histories=[["new 1"]], k=41).table)
    assert scores[0].equals(scores[1])


def test_the_seed_decides(loaded: Loaded, pretrained: Path) -> None:
    rows = []
    for seed in (1, 1, 2):
        model = CLLM4RecForRecommendation.from_pretrained(pretrained)
        settling = NewRowTraining(batch_size=1, seed=seed)
        tokenizer = add_items(model, loaded[1], pa.Table.from_pylist(NEW), settling=settling, progress=False)
        assert len(tokenizer) == model.config.total_tokens
        rows.append(model.item_content.weight[40:].detach())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_texts_that_do_not_fit(loaded: Loaded) -> None:
    model, tokenizer = loaded
    model.add_items([{"item_id": "long", "title": "word " * 200}], start="words", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="a text of the new items has .* tokens .* context holds 128; set max_text_tokens"):
        train_new_rows(model, tokenizer, 40, progress=False)
    assert train_new_rows(model, tokenizer, 40, NewRowTraining(passes=1, max_text_tokens=5), progress=False)


@pytest.mark.parametrize("field", ["passes", "lr", "lambda_c", "batch_size", "max_text_tokens", "seed"])
def test_settings_out_of_range(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} is -1; it must be . or more"):
        NewRowTraining(**{field: -1})


# ---- update ----


@pytest.fixture
def withheld(data: RecommendationData, tmp_path: Path) -> HeldOutItems:
    return hold_out_items(data, tmp_path / "withheld", share=0.2, tuning_share=0.0)


def small(model: CLLM4RecForRecommendation, data: RecommendationData) -> None:
    """Make the model one of part of the data: 30 items and 50 users, in another order."""
    model.take_items(np.arange(39, 9, -1))
    rows = np.arange(59, 9, -1)
    users = model.users
    assert users is not None
    ids = users.ids.array.take(pa.array(rows))
    model.take_users(rows, KnownUsers(ids))


def test_a_model_grows_to_its_data(loaded: Loaded, data: RecommendationData) -> None:
    model, tokenizer = loaded
    whole = state(model)
    small(model, data)
    grown = grow_to(model, tokenizer, data)
    assert len(grown) == model.config.total_tokens and (model.num_items, model.config.num_users) == (40, 60)
    assert model.catalogue is not None and model.catalogue.table.equals(data.items)
    assert model.users is not None and model.users.ids.array.equals(data.users["user_id"].combine_chunks())
    train = data.histories("train")
    assert np.array_equal(model.users.items, train.items)
    for side in SIDES:
        for kind, table, new in zip(("user", "item"), model.tables(side), (10, 10), strict=True):
            before = whole[f"{kind}_{side}.weight"]
            assert torch.equal(table.weight[new:], before[new:])  # known users and items keep their rows, at any position
            assert not torch.equal(table.weight[:new], before[:new])
    model.check_catalogue()


def test_the_same_data_change_nothing(loaded: Loaded, data: RecommendationData) -> None:
    model, tokenizer = loaded
    whole = state(model)
    grow_to(model, tokenizer, data)
    assert all(torch.equal(one, whole[name]) for name, one in state(model).items())


def test_update_goes_on(pretrained: Path, data_folder: Path, data: RecommendationData, tmp_path: Path, loaded: Loaded) -> None:
    model, tokenizer = loaded
    small(model, data)
    start = tmp_path / "start"
    model.config.max_history_tokens = 60
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    (start / "training.json").write_text(
        json.dumps({"finetune": {"arguments": {}, "seconds": 1.0, "steps": 7, "versions": {}, "machine": "m"}})
    )
    values: dict[str, Any] = {"data": str(data_folder), "start": str(start), "lr": 0.01, "batch_size": 16}
    arguments = UpdateArguments(**values, output=str(tmp_path / "now"), epochs=1)
    updated, progress = update(arguments)
    assert progress.finished and updated.config.max_history_tokens == 60
    again = CLLM4RecForRecommendation.from_pretrained(tmp_path / "now")
    assert (again.num_items, again.config.num_users) == (40, 60)
    assert len(CLLM4RecTokenizer.from_pretrained(tmp_path / "now")) == again.config.total_tokens
    records = json.loads((tmp_path / "now" / "training.json").read_text())
    assert list(records) == ["finetune", "update"] and "## Training: update" in (tmp_path / "now" / "README.md").read_text()
    assert torch.equal(again.item_content.weight[10:], model.item_content.weight[:30].flip(0))  # no C steps
    assert not torch.equal(again.item_collaborative.weight[10:], model.item_collaborative.weight[:30].flip(0))
    stopped = dataclasses.replace(arguments, output=str(tmp_path / "resumed"), stop_after_steps=2)
    assert not update(stopped)[1].finished
    resumed, _ = update(dataclasses.replace(stopped, stop_after_steps=0, resume=True))
    assert torch.equal(resumed.item_collaborative.weight, updated.item_collaborative.weight)


def test_data_that_lack_something(loaded: Loaded, withheld: HeldOutItems) -> None:
    gone = str(withheld.items["item_id"][0].as_py())
    with pytest.raises(ValueError, match="lacks 8 item_id of the model: .*it must hold all of them: prepare it with keep_all"):
        grow_to(*loaded, withheld.data)
    assert gone in loaded[0].catalogue.ids.array.to_pylist()


def test_data_that_lack_a_user(loaded: Loaded, data: RecommendationData) -> None:
    model, tokenizer = loaded
    model.add_users({"nobody else": [data.items["item_id"][0].as_py()]})
    with pytest.raises(ValueError, match="lacks 1 user_id of the model: .'nobody else'.; it must hold all of them: keep their"):
        grow_to(model, tokenizer, data)


def test_what_update_refuses(data_folder: Path, pretrained: Path, tmp_path: Path) -> None:
    make: Callable[..., UpdateArguments] = lambda **values: UpdateArguments(data=str(data_folder), **values)  # noqa: E731
    with pytest.raises(ValueError, match="start is not set; it must be the folder"):
        make(output=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="start: there is no folder nowhere"):
        update(make(output=str(tmp_path), start="nowhere"))
    with pytest.raises(ValueError, match="start and output are both"):
        update(make(output=str(pretrained), start=str(pretrained)))
