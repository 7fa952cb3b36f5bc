"""Hybrids: parts by hand and against the baselines, the learned sum, the saved folder, and a catalogue that changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.ensemble import EnsembleRecommender, standardized
from modeling_cllm4rec.baselines.hybrid import LinearPartRecommender, fit_linear_parts, linear_part, make_hybrid
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.core import linear_parts
from modeling_cllm4rec.core.handler import EndpointHandler
from modeling_cllm4rec.core.linear_parts import LINEAR_PARTS_FILE, FactorPart, LinearPart, LinearParts
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.interaction_matrix import ItemWeights
from modeling_cllm4rec.evaluation.evaluator import evaluate, select_users
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from tests.helpers.lcrec_models import ITEMS, new_lcrec

NAMES = "ease+textknn"


@pytest.fixture
def model(tiny_backbones: dict[str, Path], data: RecommendationData) -> CLLM4RecForRecommendation:
    """Make an untrained model of the small world, which can recommend."""
    made = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"], users=data.users["user_id"].to_pylist(), catalogue=data.items, seed=3
    )
    made.config.recommendation_prompts = {"known": [[5, 6], "user", "items"], "anonymous": [[5, 6], "items"]}
    return made.eval()


def some(data: RecommendationData, count: int = 9) -> tuple[np.ndarray, Histories]:
    users = np.arange(count)
    return users, select_users(data.histories("train"), users)


def test_scores_by_hand() -> None:
    matrix = np.array([[0, 2, 0, 1], [4, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=np.float32)
    histories = [np.array([1, 0]), np.array([], dtype=np.int64), np.array([2])]
    part = linear_part("a", ItemWeights(matrix, recency=1.0))
    np.testing.assert_allclose(part.scores(histories), [[2, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    last = linear_part("a", ItemWeights(matrix, recency=1.0, max_history=1))
    np.testing.assert_allclose(last.scores(histories), [[0, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    largest = linear_part("a", ItemWeights(matrix), neighbours=1)
    np.testing.assert_allclose(largest.scores(histories[:1]), [[4, 2, 0, 0]])


def test_factors_score_as_weighted_least_squares() -> None:
    """The factors of a history minimize the weighted squares over all items plus the regularization, which is checked densely."""
    rng = np.random.default_rng(0)
    factors, alpha, regularization = rng.normal(size=(7, 3)).astype(np.float32), 4.0, 0.5
    part = FactorPart("a", 1.0, alpha, regularization, factors, factors.T @ factors)
    history = np.array([5, 2, 5])
    weights = np.where(np.isin(np.arange(7), history), alpha, 1.0)
    wanted = np.isin(np.arange(7), history).astype(float)
    left = factors.T @ np.diag(weights) @ factors + regularization * np.eye(3)
    expected = factors @ np.linalg.solve(left, factors.T @ (weights * wanted))
    found = part.scores([history, history[:0], *[history] * 300])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert not found[1].any() and np.allclose(found[300], found[0])
    kept = np.array([6, 2, 5])
    changed = part.of_items(kept, 1)
    assert changed.num_items == 4
    np.testing.assert_allclose(changed.scores([np.array([1, 2])])[0], [*expected[kept], 0.0], rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["ease", "ease-recency", "ials", "itemknn", "textknn", "textknn-last", "transition-graph", "two-hop-graph"]
)
@pytest.mark.filterwarnings("ignore::modeling_cllm4rec.corpora.history_order.UnorderedHistoriesWarning")
def test_a_whole_part_scores_as_its_baseline(name: str, data: RecommendationData) -> None:
    if name == "ials":
        pytest.importorskip("implicit", reason="needs the extra baselines")
    users, histories = some(data)
    expected: Any = fit_baseline(name, data)
    (part,) = fit_linear_parts(name, data, neighbours=data.num_items)
    found = LinearPartRecommender(part).score_histories(users, histories)
    np.testing.assert_allclose(found, expected.score_histories(users, histories), rtol=1e-4, atol=1e-5)


def test_standardized_as_the_baselines_are() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    scores[2] = 5
    np.testing.assert_allclose(linear_parts.standardized(torch.from_numpy(scores)), standardized(scores), rtol=1e-6)


def test_the_hybrid_is_the_sum_that_was_tuned(model: CLLM4RecForRecommendation, data: RecommendationData) -> None:
    users, histories = some(data)
    alone = model.score_histories(users, histories)
    tuning = make_hybrid(model, data, NAMES, {"ease": {"regularization": 20.0}}, trials=30, metric="ndcg@10", progress=False)
    assert model.linear_parts is not None
    weights = tuning.settings["weights"]
    assert weights["model"] == 1 and {name: weight for name, weight in weights.items() if weight}.keys() == {
        "model",
        *model.linear_parts.weights,
    }
    parts = fit_linear_parts(NAMES, data, {"ease": {"regularization": 20.0}})
    total = standardized(alone)
    for part in parts:
        total += np.float32(weights[part.name]) * standardized(part.scores(np.split(histories.items, histories.indptr[1:-1])))
    np.testing.assert_allclose(model.score_histories(users, histories), total, rtol=1e-4, atol=1e-4)
    best = max(tuning.trials["ndcg@10"].to_pylist())
    report = evaluate(model, data, "validation", metrics=["ndcg@10"], max_users=4000, progress=False)
    assert report.metrics["ndcg@10"] == pytest.approx(best)
    model.linear_parts = None
    without = evaluate(model, data, "validation", metrics=["ndcg@10"], max_users=4000, progress=False)
    assert best > without.metrics["ndcg@10"] + 0.05  # the model is untrained


def test_a_saved_hybrid_answers_alike_on_every_path(
    model: CLLM4RecForRecommendation, data: RecommendationData, tmp_path: Path
) -> None:
    make_hybrid(model, data, NAMES, trials=8, metric="ndcg@10", progress=False)
    ids = data.items["item_id"].to_pylist()
    histories = [[ids[3], ids[8]], [ids[20]]]
    found = model.recommend(histories=histories, k=5).table
    model.save_pretrained(tmp_path / "hybrid")
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path / "hybrid")
    assert loaded.linear_parts is not None and loaded.recommend(histories=histories, k=5).table.equals(found)
    served = EndpointHandler(str(tmp_path / "hybrid"))({"inputs": {"histories": histories, "k": 5}})
    assert [row["item"] for user in served["results"] for row in user["items"]] == found["item"].to_pylist()
    loaded.linear_parts = None
    assert not loaded.recommend(histories=histories, k=5).table.equals(found)
    loaded.save_pretrained(tmp_path / "hybrid")  # a model without parts leaves none behind
    assert CLLM4RecForRecommendation.from_pretrained(tmp_path / "hybrid").linear_parts is None


def test_items_come_and_go(model: CLLM4RecForRecommendation, data: RecommendationData, tmp_path: Path) -> None:
    make_hybrid(model, data, NAMES, trials=8, metric="ndcg@10", progress=False)
    before = model.linear_parts
    assert before is not None
    histories = [np.array([4, 2])]
    scores = before.parts[0].scores(histories)[0]
    model.remove_items([data.items["item_id"][0].as_py(), data.items["item_id"][7].as_py()])
    kept = np.setdiff1d(np.arange(data.num_items), [0, 7])
    assert model.linear_parts is not None
    moved = [np.searchsorted(kept, histories[0])]
    np.testing.assert_allclose(model.linear_parts.parts[0].scores(moved)[0], scores[kept], rtol=1e-6)
    grown = model.linear_parts.of_items(np.arange(len(kept)), 2, None)
    np.testing.assert_allclose(grown.parts[0].scores(moved)[0], [*scores[kept], 0, 0], rtol=1e-6)
    model.save_pretrained(tmp_path / "less")
    assert CLLM4RecForRecommendation.from_pretrained(tmp_path / "less").num_items == len(kept)


def test_lcrec_adds_parts_to_its_item_head_and_not_to_a_search(tiny_backbones: dict[str, Path]) -> None:
    model, _ = new_lcrec(tiny_backbones["gpt2"], item_head=True)
    asked = {"histories": [[ITEMS[0], ITEMS[3]]], "k": 4}
    beams, alone = model.recommend(**asked, scoring="beam").table, model.recommend(**asked).table
    matrix = np.zeros((12, 12))
    matrix[3, 9] = 50
    part = linear_part("graph", ItemWeights(matrix))
    model.linear_parts = LinearParts([part], model.config.catalogue_fingerprint)
    assert model.recommend(**asked).table["item"][0].as_py() == ITEMS[9] != alone["item"][0].as_py()
    assert model.recommend(**asked, scoring="all").table["item"][0].as_py() == ITEMS[9]
    assert model.recommend(**asked, scoring="beam").table.equals(beams)
    assert model.describe_search() == "all items scored by the item head, and 1 linear models, template 0"
    model.remove_items([ITEMS[1]])
    assert model.recommend(**asked).table["item"][0].as_py() == ITEMS[9]


def test_the_command(
    model: CLLM4RecForRecommendation,
    data: RecommendationData,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"num_users": data.num_users, "num_items": data.num_items, "id_offset": model.config.id_offset}
    model.card = "# A model"
    model.save_pretrained(tmp_path / "model")
    CLLM4RecTokenizer.from_backbone(tiny_backbones["gpt2"], **sizes).save_pretrained(tmp_path / "model")
    flags = ["hybrid", "--model", str(tmp_path / "model"), "--data", str(data.folder), "--output", str(tmp_path / "hybrid")]
    assert (
        main(
            [*flags, "--baselines", "ease", "--settings", "regularization=20", "--trials", "14", "--metric", "ndcg@10", "--json"]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    made = CLLM4RecForRecommendation.from_pretrained(tmp_path / "hybrid")
    assert made.linear_parts is not None and made.linear_parts.weights == said["weights"]
    assert made.card is not None and "## Hybrid" in made.card and "ease" in made.card
    assert main([*flags, "--baselines", "ease"]) == 2  # the folder is there
    flags[-1] = str(tmp_path / "other")
    assert main([*flags, "--baselines", "ease", "--settings", "regularization"]) == 2
    assert "--settings: 'regularization' has no = in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": "popularity"}, "baselines has popularity, which is no linear model; choose some of ease"),
        ({"settings": {"itemknn": {}}}, "settings name itemknn, which is none of the baselines ease"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_hybrids_that_cannot_be(
    model: CLLM4RecForRecommendation, data: RecommendationData, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_hybrid(model, data, **{"names": "ease", "progress": False, **changes})


def test_a_model_that_searches_and_another_catalogue_are_refused(
    tiny_backbones: dict[str, Path], data: RecommendationData, model: CLLM4RecForRecommendation
) -> None:
    searching, _ = new_lcrec(tiny_backbones["gpt2"])
    with pytest.raises(ValueError, match="are not those of the model, or in another order; give its own data"):
        make_hybrid(searching, data, "ease")
    part = linear_part("ease", ItemWeights(np.zeros((12, 12))))
    with pytest.raises(ValueError, match=rf"it has 12 items|its parts have 12 items, the weights {data.num_items}"):
        LinearParts([part], None).check(model.config)
    with pytest.raises(ValueError, match="fitted on other items, or in another order"):
        LinearParts([part], "0" * 64).check(searching.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.indptr": np.array([0, 5, 2, 3])}, "indptr of part 0 goes from 0 to 3 for 3 entries|which are of no matrix|indptr"),
        ({"0.items": np.array([1, 2, 9], np.int32)}, "part 0 has items from 1 to 9|part 0 has items 1 to 9"),
        ({"0.items": np.array([-1, 2, 0], np.int32)}, "part 0 has items .*-1"),
        ({"0.values": np.array([1, np.nan, 0], np.float32)}, "values that are NaN or infinite"),
        ({"0.values": np.array([1.0, 2.0, 3.0])}, "values of part 0 is F64"),
        ({"0.values": np.array([1.0], np.float32)}, "which are of no matrix"),
        ({"1.gram": np.eye(3, dtype=np.float32)}, r"part 1 have the shapes \(3, 2\) and \(3, 3\), which are of no factors"),
        (
            {"1.item_factors": np.zeros(3, np.float32)},
            r"item_factors of part 1 is F32 of shape \[3\]; it must be F32 of 2 dimensions",
        ),
        ({"1.item_factors": np.full((3, 2), np.inf, np.float32)}, "part 1 has values that are NaN or infinite"),
    ],
)
def test_damaged_files_are_refused_by_name(change: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    part = LinearPart("a", 1.0, 0.0, None, np.array([0, 1, 2, 3]), np.array([1, 2, 0], np.int32), np.ones(3, np.float32))
    factors = FactorPart("b", 0.5, 2.0, 1.0, np.ones((3, 2), np.float32), np.eye(2, dtype=np.float32))
    LinearParts([part, factors], "f").save(tmp_path)
    file = tmp_path / LINEAR_PARTS_FILE
    again = LinearParts.load(file)
    assert again.catalogue_fingerprint == "f" and again.parts[0].scores([np.array([0])]).tolist() == [[0, 1, 0]]
    history = [np.array([2])]
    assert again.weights == {"a": 1.0, "b": 0.5} and np.array_equal(again.parts[1].scores(history), factors.scores(history))
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    save_file({**load_file(file), **change}, file, metadata)
    with pytest.raises(ValueError, match=rf"linear_parts.safetensors: .*({message})"):
        LinearParts.load(file)


@pytest.mark.parametrize(
    "about", ["", "[]", "7", '[{"name": "a"}]',
              '[{"kind": "items", "name": "a", "weight": -1, "recency": 0, "max_history": null}]',
              '[{"kind": "items", "name": "a", "weight": 1, "recency": 0, "max_history": 0}]',
              '[{"kind": "trees", "name": "a", "weight": 1}]', '[{"kind": "items", "name": 7, "weight": 1}]']
)  # fmt: skip
def test_metadata_that_describes_no_parts_is_refused(about: str, tmp_path: Path) -> None:
    save_file({"0.indptr": np.zeros(2, np.int64)}, tmp_path / LINEAR_PARTS_FILE, {"parts": about, "catalogue_fingerprint": ""})
    with pytest.raises(ValueError, match="linear_parts.safetensors: "):
        LinearParts.load(tmp_path / LINEAR_PARTS_FILE)
    (tmp_path / LINEAR_PARTS_FILE).write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="linear_parts.safetensors: it cannot be read"):
        LinearParts.load(tmp_path / LINEAR_PARTS_FILE)


def test_equal_weights_are_the_sum_of_baselines(data: RecommendationData) -> None:
    users, histories = some(data)
    parts = fit_linear_parts(NAMES, data, neighbours=data.num_items)
    first, second = (LinearPartRecommender(part) for part in parts)
    expected = EnsembleRecommender([first, second]).score_histories(users, histories)
    rows = np.split(histories.items, histories.indptr[1:-1])
    found = LinearParts(parts[1:], None).added(torch.from_numpy(first.score_histories(users, histories)), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
