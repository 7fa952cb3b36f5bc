"""Evaluation of search: queries of held-out reviews, baselines by hand, with and without the history, refusals."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lcrec_models import HISTORIES, ITEMS, USERS, new_lcrec
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from modeling_cllm4rec.commands.evaluate import main
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.evaluation import search_baselines
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.search_baselines import BM25, EncoderCosine, TfidfCosine, search_baseline
from modeling_cllm4rec.evaluation.search_evaluation import SearchingModel, evaluate_search
from modeling_cllm4rec.evaluation.search_queries import SearchQueries, held_out_reviews, search_queries
from modeling_cllm4rec.evaluation.two_towers import TwoTowers
from modeling_cllm4rec.lcrec.review_queries import queries_of_reviews

METRICS = ["hit_rate@1", "hit_rate@2", "ndcg@2", "coverage@2"]


def small_world(folder: Path, **arguments: Any) -> RecommendationData:
    """Return the users and items of the tiny LC-Rec model: each user's last two items are held out, with reviews."""
    rows = [(user, item) for user, history in enumerate(HISTORIES) for item in (*history, *[8, 9][: 2 if user != 1 else 0])]
    interactions = pa.table(
        {
            "user_id": [USERS[user] for user, _ in rows],
            "item_id": [ITEMS[item] for _, item in rows],
            "review": [f"Fernwood sent me number{item} of kind{item % 3}. So so." for _, item in rows],
        }
    )
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    items = pa.table(
        {
            "item_id": ITEMS,
            "title": [f"number{number} {word}" for number, word in enumerate(words)],
            "brand": ["Fernwood"] * 12,
        }
    )
    settings: dict[str, Any] = {"split": "leave-one-out", "order": "rows", "keep_all_items": True, "held_out_reviews": True}
    return prepare_tables(interactions, items, None, folder, **settings | arguments)


@pytest.fixture
def world(tmp_path: Path) -> RecommendationData:
    return small_world(tmp_path / "data")


class Scorer:
    """Scores items in the order of the catalogue: the first is the best."""

    num_items = 12

    def score_queries(self, queries: list[str]) -> np.ndarray:
        return np.tile(-np.arange(12, dtype=np.float32), (len(queries), 1))


def test_bm25_by_hand() -> None:
    """Lengths 2, 3 and 1, mean 2; `lamp` is in two texts, `red` in one."""
    scores = BM25(["red lamp", "lamp lamp blue", "pot"], k1=1.2, b=0.75).score_queries(["a red lamp", "red red", "unknown"])
    lamp, red = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    first = lamp * 2.2 / (1 + 1.2)
    second = lamp * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [[first + red, second, 0], [2 * red, 0, 0], [0, 0, 0]], rtol=1e-6)
    longer = BM25(["red lamp", "lamp lamp blue", "pot"], b=0).score_queries(["lamp"])[0, 1]
    assert longer == pytest.approx(lamp * 2 * 2.2 / 3.2)


@pytest.mark.parametrize(("settings", "message"), [({"k1": -1}, "k1 is -1; it must be 0 or more"), ({"b": 2}, "b is 2; it must")])
def test_bm25_refuses_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BM25(["red"], **settings)
    with pytest.raises(InputError, match="the texts of 2 items have no word"):
        BM25(["the", ""])


def test_tfidf_by_hand() -> None:
    lamp, red = 1 + math.log(3 / 3), 1 + math.log(3 / 2)
    scores = TfidfCosine(["red lamp", "lamp lamp"]).score_queries(["lamp"])
    np.testing.assert_allclose(scores, [[lamp / math.hypot(lamp, red), 1.0]], rtol=1e-6)


def test_encoder_cosine(world: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    """A query that is the whole text of an item has cosine 1 with it."""
    encoder = search_baseline(f"encoder:{tiny_backbones['gpt2']}", world, queries_of_reviews)
    assert isinstance(encoder, EncoderCosine)
    scores = encoder.score_queries(["number3 three", "number7 seven"])
    assert scores.shape == (2, 12) and scores.argmax(axis=1).tolist() == [3, 7]
    np.testing.assert_allclose(scores.max(axis=1), 1, atol=1e-5)


def test_baselines_with_reviews_read_training_reviews_alone(world: RecommendationData) -> None:
    """Item 0 has a training review of kind0; item 9 is in the test split alone."""
    kinds = search_baseline("bm25-reviews", world, queries_of_reviews).score_queries(["kind0"])[0]
    assert kinds[0] > 0 and kinds[9] == 0
    assert not search_baseline("bm25", world, queries_of_reviews).score_queries(["kind0"]).any()
    assert search_baseline("tfidf-reviews", world, queries_of_reviews).score_queries(["kind0"])[0, 0] > 0


def test_two_towers_train_as_a_plain_loop() -> None:
    """Cosines over the temperature, softmax among the items of a batch, AdamW; trigrams within words by TF-IDF."""
    words, texts, items = (
        ["to write", "to drink", "to sleep", "to cook"] * 5,
        ["pen", "tea", "bed", "pot"],
        np.tile(np.arange(4), 5),
    )
    towers = TwoTowers(texts, words, items, hidden=6, size=3, num_train_epochs=3, batch_size=7, learning_rate=0.01, seed=2)
    trigrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, dtype=np.float32).fit([*texts, *words])
    asked, found = (torch.from_numpy(trigrams.transform(rows).toarray()) for rows in (words, texts))
    torch.manual_seed(2)
    layers = [(nn.Linear(asked.shape[1], 6), nn.Linear(6, 3)) for _ in range(2)]

    def vectors(tower: int, rows: torch.Tensor) -> torch.Tensor:
        out = layers[tower][1](layers[tower][0](rows).tanh()).tanh()
        return out / out.norm(dim=1, keepdim=True)

    optimizer = torch.optim.AdamW([weight for pair in layers for layer in pair for weight in layer.parameters()], 0.01)
    for epoch in range(3):
        order = np.random.default_rng((2, epoch)).permutation(20)
        for batch in (order[:7], order[7:14], order[14:]):
            choices = sorted(set(items[batch].tolist()))
            scores = vectors(0, asked[batch]) @ vectors(1, found[choices]).T / 0.1
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, torch.tensor([choices.index(item) for item in items[batch]])).backward()
            optimizer.step()
    with torch.no_grad():
        wanted = vectors(0, asked[:4]) @ vectors(1, found).T
    np.testing.assert_allclose(towers.score_queries(words[:4]), wanted, atol=1e-5)


def test_two_towers_learn_the_queries_of_training_reviews(world: RecommendationData) -> None:
    """Words of reviews that are in no item text lead to the item; the same seed makes the same towers."""
    words = ["to write", "to drink", "to sleep", "to cook"]
    texts = ["pen", "tea", "bed", "pot"]
    items = np.tile(np.arange(4), 5)
    towers = [TwoTowers(texts, words * 5, items, num_train_epochs=20, batch_size=7, seed=seed) for seed in (0, 0, 1)]
    scores = [one.score_queries(words) for one in towers]
    assert scores[0].argmax(axis=1).tolist() == [0, 1, 2, 3] and np.abs(scores[0]).max() <= 1 + 1e-6
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    with pytest.raises(InputError, match="queries has 0 texts and items 4; give one item for each of some queries"):
        TwoTowers(texts, [], np.arange(4))
    asked = []

    def write(reviews: Any, brands: Any) -> list[str]:
        asked.extend(reviews)
        return queries_of_reviews(reviews, brands)

    found = search_baseline("dssm", world, write).score_queries(["number4 of kind1"])
    assert found.shape == (1, 12) and len(asked) == 10 and not any("number9" in review for review in asked)


def test_popularity_reads_no_query(world: RecommendationData) -> None:
    """Training: items 0, 3, 5; 11; and 2 to 7."""
    scores = search_baseline("popularity", world, queries_of_reviews).score_queries(["a", "b"])
    assert scores.tolist() == [[1, 0, 1, 2, 1, 2, 1, 1, 0, 0, 0, 1]] * 2


def test_unknown_baseline_and_items_without_texts(world: RecommendationData) -> None:
    with pytest.raises(InputError, match="no baseline of search 'bm52': there are popularity, bm25, .*encoder:NAME; .*bm25"):
        search_baseline("bm52", world, queries_of_reviews)
    bare = dataclasses.replace(world, items=world.items.select(["item_id"]))
    with pytest.raises(InputError, match="have no texts to search in: none of title, brand, categories, description"):
        search_baseline("bm25", bare, queries_of_reviews)
    assert set(search_baselines.SEARCH_BASELINES) == {
        "popularity",
        "bm25",
        "bm25-reviews",
        "tfidf",
        "tfidf-reviews",
        "dssm",
        "encoder",
    }


def test_queries_of_reviews() -> None:
    reviews = ["Great. The <b>box</b> is small, but the lamp is bright!", "Lamp", "So so.", "Fernwood.", "Fernwood box lamp"]
    queries = queries_of_reviews(reviews, ["", "", "", "Fernwood", "Fernwood"])
    assert queries[0] == "The box is small, but the lamp is bright!"
    assert "lamp" in queries[1] and queries[2:4] == ["", ""]
    assert "box" in queries[4] and "fernwood" not in queries[4].lower()
    assert queries_of_reviews([]) == [] and queries_of_reviews(["so so"]) == [""]
    with pytest.raises(InputError, match="brands has 1 texts for 2 reviews"):
        queries_of_reviews(["a", "b"], ["c"])


def test_held_out_reviews_are_in_their_file_alone(tmp_path: Path) -> None:
    """The folder is the same with and without the file, except for its card."""
    world, plain = small_world(tmp_path / "data"), small_world(tmp_path / "plain", held_out_reviews=False)
    names = {path.name for path in world.folder.iterdir()}
    assert names - {path.name for path in plain.folder.iterdir()} == {"held_out_reviews.parquet"}
    for name in names - {"held_out_reviews.parquet", "README.md"}:
        assert (world.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    assert "| `held_out_reviews` | `user_index`, `item_index`, `split`, `review` |" in (world.folder / "README.md").read_text()
    held = pq.read_table(world.folder / "held_out_reviews.parquet")
    assert held.select(["user_index", "split"]).to_pydict() == {
        "user_index": [0, 0, 2, 2],
        "split": ["validation", "test"] * 2,
    }
    assert held["item_index"].to_pylist() == [8, 9, 8, 9]
    assert held["review"][0].as_py().startswith("Fernwood sent me number8 of kind2.")
    assert set(world.reviews()["item_index"].to_pylist()) == {0, 2, 3, 4, 5, 6, 7, 11}  # training pairs


def test_no_other_module_names_the_file() -> None:
    """Modules that train cannot read it without naming it; that none imports the reader is a contract in setup.cfg."""
    package = Path(search_baselines.__file__).parents[1]
    names = re.compile("held_out_reviews", re.IGNORECASE)
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if names.search(path.read_text())}
    assert found == {"corpora/data_folder.py", "corpora/preparation.py", "evaluation/search_queries.py"}


def test_queries_are_made_of_the_split_alone(world: RecommendationData) -> None:
    given: list[Any] = []

    def write(reviews: Any, brands: Any) -> list[str]:
        given.append((list(reviews), list(brands)))
        return ["", "a lamp"]

    queries = search_queries(world, "test", write)
    assert given == [(["Fernwood sent me number9 of kind0. So so."] * 2, ["Fernwood"] * 2)]
    assert (queries.queries, queries.user_indices.tolist(), queries.item_indices.tolist()) == (["a lamp"], [2], [9])
    assert (len(queries), queries.pairs, queries.split) == (1, 2, "test")
    with pytest.raises(InputError, match="no review of a test pair makes a query"):
        search_queries(world, "test", lambda reviews, brands: [""] * len(reviews))
    with pytest.raises(InputError, match="split is 'train'; queries are made of the reviews of validation or test pairs"):
        held_out_reviews(world, "train")


def test_folders_without_held_out_reviews_are_refused(tmp_path: Path, world: RecommendationData) -> None:
    plain = small_world(tmp_path / "plain", held_out_reviews=False)
    with pytest.raises(MissingFileError, match="has no held-out reviews.*cllm4rec prepare --held-out-reviews"):
        held_out_reviews(plain, "test")
    pairs = pa.table({"user_id": ["a"] * 3, "item_id": [1, 2, 3]})
    with pytest.raises(InputError, match="held_out_reviews is True, but no interaction has a review"):
        prepare_tables(pairs, None, None, tmp_path / "bare", split="random", held_out_reviews=True)
    file = world.folder / "held_out_reviews.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(1, "item_index", pa.array([1, 1, 1, 1], pa.int32())), file)
    with pytest.raises(InputError, match="has reviews of pairs that are not in test: it is of another data folder"):
        held_out_reviews(world, "test")
    pq.write_table(table.slice(0, 1), file)
    with pytest.raises(InputError, match="no test pair of .* has a review"):
        held_out_reviews(world, "test")


def test_metrics_by_hand(world: RecommendationData) -> None:
    """User 0 has two queries, whose metrics are averaged; the history of user 0 is 0, 3, 5, and of user 2 it is 2 to 7."""
    queries = SearchQueries("test", np.array([0, 0, 2]), np.array([1, 2, 1]), ["a", "b", "c"], pairs=4)
    report = evaluate_search(Scorer(), world, queries, "none", METRICS)
    assert report.user_indices.tolist() == [0, 2]
    assert report.per_user["hit_rate@1"].tolist() == [0, 0]
    assert report.per_user["hit_rate@2"].tolist() == [0.5, 1]  # ranks 2, 3 and 2
    assert report.per_user["ndcg@2"].tolist() == pytest.approx([0.5 / math.log2(3), 1 / math.log2(3)])
    assert report.metrics["coverage@2"] == 2 / 12 and "coverage@2" not in report.intervals
    given = evaluate_search(Scorer(), world, queries, "train", METRICS)
    assert given.per_user["hit_rate@1"].tolist() == [0.5, 0]  # 0 is seen by user 0, not by user 2
    assert given.per_user["hit_rate@2"].tolist() == [1, 1]
    low, high = given.intervals["hit_rate@1"]
    assert low <= 0.25 <= high and evaluate_search(Scorer(), world, queries, "none", METRICS, n_resamples=0).intervals == {}
    line = str(given.protocol)
    assert "test; queries 3 of the reviews of 4 test pairs, made by rules; history train; masked train; ranked full" in line
    assert "2 users, 1 without queries left out" in line
    assert "history none; masked none" in str(report.protocol)
    assert given.protocol.departures == ("search",)


def test_users_without_a_history_and_samples(world: RecommendationData) -> None:
    queries = SearchQueries("test", np.array([0, 1, 2]), np.array([1, 1, 1]), ["a", "b", "c"], pairs=3)
    lone = dataclasses.replace(
        world, interactions=world.interactions.filter(pa.array(world.interactions["user_index"].to_numpy() != 1))
    )
    report = evaluate_search(Scorer(), lone, queries, "train", METRICS)
    assert report.users == 2 and ", 1 of users without a history left out" in report.protocol_line
    assert evaluate_search(Scorer(), lone, queries, "none", METRICS).users == 3
    only = queries.of(np.array([False, True, False]))
    with pytest.raises(InputError, match="no user with a query has a history in train; measure without the history"):
        evaluate_search(Scorer(), lone, only, "train", METRICS)
    sample = evaluate_search(Scorer(), world, queries, "none", METRICS, max_users=2)
    assert sample.users == 2 and sample.protocol.departures == ("search", "2 users")
    assert "a random sample of 3, seed 0" in sample.protocol_line
    for name, value, message in (("max_users", 0, "max_users is 0"), ("n_resamples", -1, "n_resamples must be 0")):
        with pytest.raises(InputError, match=message):
            evaluate_search(Scorer(), world, queries, "none", METRICS, **{name: value})
    with pytest.raises(InputError, match="the recommender has 12 items, but the data has 11"):
        evaluate_search(Scorer(), dataclasses.replace(world, items=world.items.slice(1)), queries, "none", METRICS)


def test_only_a_search_has_no_history() -> None:
    with pytest.raises(InputError, match="test_history must be one of train, train\\+validation, got 'none'"):
        Protocol("beauty", "given split", "test", "none", "none", items=50, users=9, excluded_users=1)


@pytest.mark.parametrize("history", ["none", "train", "train+validation"])
def test_a_model_answers_as_its_search_does(world: RecommendationData, tiny_backbones: dict[str, Path], history: str) -> None:
    model, tokenizer = new_lcrec(tiny_backbones["llama"])
    model.tokenizer = tokenizer
    queries = search_queries(world, "test", queries_of_reviews)
    assert queries.queries == ["I am looking for number9, kind0."] * 2 or len(queries) == 2
    report = evaluate_search(SearchingModel(model, {"num_beams": 12}), world, queries, history, ["hit_rate@3"])
    rows = world.histories(*(["train"] if history == "none" else history.split("+")))
    read = [[ITEMS[item] for item in np.split(rows.items, rows.indptr[1:-1])[user]] for user in (0, 2)]
    answers = model.search(queries.queries, k=3, histories=None if history == "none" else read, num_beams=12)
    expected = [float(ITEMS[9] in answers.items(user)) for user in (0, 1)]
    assert report.per_user["hit_rate@3"].tolist() == expected
    assert report.protocol.decoding == "constrained search with 12 beams, template 0"


@pytest.fixture
def saved(tiny_backbones: dict[str, Path], tmp_path: Path) -> str:
    model, tokenizer = new_lcrec(tiny_backbones["llama"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_command(saved: str, world: RecommendationData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--model",
        saved,
        "--data",
        str(world.folder),
        "--search",
        "--metrics",
        "hit_rate@5",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--baselines", "bm25", "tfidf-reviews"]) == 0
    printed = capsys.readouterr().out
    assert "| bm25 | " in printed and "| tfidf-reviews | " in printed and "| LC-Rec | " in printed
    assert "of the reviews of 2 test pairs, made by rules; history train+validation; masked train+validation" in printed
    assert main([*words, "--without-history"]) == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert files == ["evaluation-test-given-none-search.json", "evaluation-test-given-train-validation-search.json"]
    report = EvaluationReport.load(tmp_path / "out" / files[0])
    assert report.protocol.test_history == "none" and report.command is not None and "--search" in report.command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--without-history"], "--without-history is for --search: recommendations need a history"),
        (["--search", "--mask", "none"], "--mask has no meaning with --search"),
        (["--search", "--templates", "0", "1"], "--templates: a search is measured with one template"),
        (["--search", "--templates", "7"], "template is 7; the model has templates 0 to 0"),
        (["--search", "--baselines", "ease"], "no baseline of search 'ease'"),
    ],
)
def test_refused_flags(
    saved: str, world: RecommendationData, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", saved, "--data", str(world.folder), *flags, "--metrics", "hit_rate@5"]) == 2
    assert message in capsys.readouterr().err


def test_refused_models_and_folders(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = small_world(tmp_path / "plain", held_out_reviews=False)
    assert main(["--model", saved, "--data", str(plain.folder), "--search"]) == 2
    printed = capsys.readouterr().err
    assert (
        "has no held-out reviews, of which the queries are made" in printed and "`cllm4rec prepare --held-out-reviews`" in printed
    )


def test_a_model_without_queries_is_refused(tiny_backbones: dict[str, Path]) -> None:
    model, _ = new_lcrec(tiny_backbones["llama"], query_prompts=None)
    with pytest.raises(InputError, match="reads no queries, so there is no search to measure; name an LC-Rec model"):
        SearchingModel(model)
