"""The example of a card runs as it is written, and its sample recommendations are those of the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.core.saved_folder import named_model
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.hub.card_examples import EXAMPLES_FILE, load_examples, recommend_examples
from modeling_cllm4rec.hub.card_sections import examples_section, scoring_section, trained_on_queries, use_section
from modeling_cllm4rec.hub.model_card import save_evaluation
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer


@pytest.fixture(scope="module")
def model(data: RecommendationData, tiny_backbones: dict[str, Path]) -> CLLM4RecForRecommendation:
    """Return a model of the data with random weights: do not change it."""
    made = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        users=KnownUsers(data.users["user_id"]),
        catalogue=Catalogue(data.items),
        initializer_range=0.5,
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(tiny_backbones["gpt2"], num_users=data.num_users, num_items=data.num_items)
    made.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    return made


def test_histories_of_popular_items(model: CLLM4RecForRecommendation, data: RecommendationData) -> None:
    examples = recommend_examples(model, data)
    counts = np.bincount(data.histories("train").items, minlength=data.num_items)
    given = [[one["item"] for one in row["history"]] for row in examples["histories"]]
    assert [len(history) for history in given] == [1, 2, 1] and examples["query"] is None
    items = data.items["item_id"].to_pylist()
    chosen = sorted((counts[items.index(item)] for history in given for item in history), reverse=True)
    assert chosen == sorted(counts, reverse=True)[:4]
    for row, history in zip(examples["histories"], given, strict=True):
        answer = model.recommend(histories=[history], k=5).to_pylist()
        assert [one["item"] for one in row["recommended"]] == [one["item"] for one in answer]
        titles = data.items["title"].to_pylist()
        assert [one["title"] for one in row["recommended"]] == [titles[items.index(one["item"])] for one in answer]


def test_the_example_of_the_card_runs(
    model: CLLM4RecForRecommendation, data: RecommendationData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    report = evaluate(model, data, "validation", metrics=["recall@10"], n_resamples=0, progress=False)
    save_evaluation(folder, "evaluation-validation-given-train", report, data, model)
    card = ModelCard.load(folder / "README.md")
    assert model.card == (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)
    assert named_model("mine") in code
    capsys.readouterr()
    exec(compile(code.replace('"mine"', repr(str(folder))), "card", "exec"), {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == 1 + 5
    history = json.loads((folder / EXAMPLES_FILE).read_text(encoding="utf-8"))["histories"][1]["history"]
    assert f"histories=[{[one['item'] for one in history]!r}]" in code
    assert "## Sample recommendations" in card.text and "none of a real user" in card.text


def test_a_model_that_reads_queries_is_asked_one() -> None:
    lines = use_section("mine", SYSTEMS["lcrec"], {"histories": [], "query": "soft 'cream'"})
    assert """print(model.search(["soft 'cream'"], k=5).to_pandas())""" in lines
    assert not [line for line in use_section("mine", SYSTEMS["lcrec"], {}) if "model.search" in line]


def test_a_model_without_the_task_of_queries_is_not_asked_one() -> None:
    system, examples = SYSTEMS["lcrec"], {"histories": [], "query": "soap"}
    records = {"index-items": {"arguments": {}}, "align": {"arguments": {"tasks": ["seqrec", "itemsearch=0.1"]}}}
    assert trained_on_queries(system, records) and trained_on_queries(system, {})
    records["align"]["arguments"]["tasks"] = ["seqrec"]
    assert not trained_on_queries(system, records) and trained_on_queries(SYSTEMS["cllm4rec"], records)
    text = "\n".join(use_section("mine", system, examples, trained_on_queries(system, records)))
    assert "model.search" not in text and "It was not trained to answer words" in text and "by words that say" not in text


def test_the_card_says_how_items_are_found() -> None:
    assert scoring_section({"scoring": "all"}, {}) == []
    text = "\n".join(scoring_section({"scoring": "head"}, {"ease": 0.25, "textknn": 1.0}))
    assert "by its item head" in text and "with the weights ease (0.25), textknn (1)" in text


def test_a_search_that_finds_too_few_items_gives_no_examples(
    model: CLLM4RecForRecommendation,
    data: RecommendationData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(**question: Any) -> None:
        raise QuestionError("num_beams", 2, "5 or more", "raise it")

    monkeypatch.setattr(model, "recommend", refuse)
    assert recommend_examples(model, data) == {}
    assert "the card has no sample recommendations: num_beams" in caplog.text


def test_cells_of_the_table() -> None:
    item: dict[str, Any] = {"item": "B1", "title": "a | b"}
    rows = [{"history": [item, {"item": "B2", "title": None}], "recommended": [{"item": "B3", "title": "x" * 80}]}]
    lines = examples_section({"histories": rows})
    assert lines[2] == "| rank | after a \\\\| b; B2 |".replace("\\\\", "\\") and lines[4] == f"| 1 | {'x' * 59}… |"
    assert examples_section({}) == []


def test_damaged_examples_are_named(tmp_path: Path) -> None:
    assert load_examples(tmp_path) == {}
    for text, message in (("{", "Expecting"), ("[]", "it is no JSON object")):
        (tmp_path / EXAMPLES_FILE).write_text(text)
        with pytest.raises(InputError, match=f"examples.json cannot be read .{message}.*delete it: the next evaluation"):
            load_examples(tmp_path)
    for text in ('{"histories": 7}', '{"histories": [{"history": [7], "recommended": []}]}', '{"query": 7}'):
        (tmp_path / EXAMPLES_FILE).write_text(text)
        with pytest.raises(InputError, match="examples.json holds no histories and recommendations of items with titles; delete"):
            load_examples(tmp_path)
