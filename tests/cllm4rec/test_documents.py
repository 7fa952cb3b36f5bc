"""Text documents in Arrow against the tokenizer, their cache, and histories reordered and masked in each epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_cllm4rec.cllm4rec.documents import HistoryCorpus, TextCorpus, initial_item_rows
from modeling_cllm4rec.cllm4rec.prompts import Prompts
from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

REVIEWS = ["Lovely and light.", None, "Do not buy <item_0> or <user_1>, buy user_1!", "Solid."]


@pytest.fixture(scope="module")
def small() -> RecommendationData:
    """Three users, four items, four train pairs (the second without a review), one validation pair."""
    return RecommendationData(
        users=pa.table({"user_id": ["ann", "ben", "cat"], "biography": ["Likes tea.", "", None]}),
        items=pa.table(
            {
                "item_id": ["p", "q", "r", "s"],
                "title": ["Red lamp", "Tea", None, "Pen"],
                "categories": [["Home", "Lamps", "Home"], ["Pantry"], [], None],
            }
        ),
        interactions=pa.table(
            {
                "user_index": pa.array([0, 0, 1, 2, 2], pa.int32()),
                "item_index": pa.array([3, 0, 1, 2, 0], pa.int32()),
                "split": ["train", "train", "train", "train", "validation"],
                "review": pa.array([*REVIEWS, None], pa.large_string()),
            }
        ),
        info={},
        folder=Path("small"),
    )


def byte_level_tokenizer(backbone: Path, data: RecommendationData) -> CLLM4RecTokenizer:
    return CLLM4RecTokenizer.from_backbone(backbone, num_users=data.num_users, num_items=data.num_items)


def word_piece_tokenizer(texts: list[str], data: RecommendationData) -> CLLM4RecTokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False))
    backbone = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return CLLM4RecTokenizer.from_backbone(backbone, num_users=data.num_users, num_items=data.num_items)


@pytest.fixture(scope="module")
def tokenizer(tiny_backbones: dict[str, Path], small: RecommendationData) -> CLLM4RecTokenizer:
    return byte_level_tokenizer(tiny_backbones["gpt2"], small)


def make_corpus(data: RecommendationData, tokenizer: CLLM4RecTokenizer, folder: Path, **changes: Any) -> TextCorpus:
    arguments: dict[str, Any] = {"prompts": Prompts(), "context_length": 512, "cache_folder": folder, **changes}
    return TextCorpus(data, tokenizer, **arguments)


def rendered(data: RecommendationData) -> dict[str, list[tuple[str, str]]]:
    """Kind -> (prompt in words, main text) of each document that a data folder should give, by plain loops."""
    prompts, documents = Prompts(), {}
    for column in ("title", "brand", "categories", "description"):
        if column in data.items.column_names:
            texts = data.items[column].to_pylist()
            texts = [", ".join(dict.fromkeys(text)) if isinstance(text, list) else text for text in texts]
            documents[column] = [
                (prompts.item_text.format(item=f"<item_{item}>", column=column), text) for item, text in enumerate(texts) if text
            ]
    documents["biography"] = [
        (prompts.biography.format(user=f"<user_{user}>"), text)
        for user, text in enumerate(data.users["biography"].to_pylist())
        if text
    ]
    documents["review"] = [
        (prompts.review.format(user=f"<user_{row['user_index']}>", item=f"<item_{row['item_index']}>"), row["review"])
        for row in data.interactions.to_pylist()
        if row["split"] == "train" and row["review"]
    ]
    return documents


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
def test_documents_are_what_the_tokenizer_gives(
    kind: str, data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    """Every document of the tiny world: prompt and main text tokenized as one string, closed by the end token."""
    expected = rendered(data)
    texts = [text for documents in expected.values() for pair in documents for text in pair]
    if kind == "word_piece":
        tokenizer = word_piece_tokenizer(texts, data)
        begin, end = [], [tokenizer.sep_token_id]
    else:
        tokenizer = byte_level_tokenizer(tiny_backbones["gpt2"], data)
        begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    corpus = make_corpus(data, tokenizer, tmp_path)
    assert corpus.documents is not None
    found: dict[str, list[tuple[list[int], int]]] = {}
    for row in corpus.documents.with_format(None):
        found.setdefault(row["kind"], []).append((row["input_ids"], row["prompt_length"]))
    assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in expected.items()}
    assert len(corpus) == sum(map(len, expected.values())) > 300
    for name, documents in expected.items():
        for (prompt, text), (ids, prompt_length) in zip(documents, found[name], strict=True):
            assert ids == begin + tokenizer(prompt + text, add_special_tokens=False)["input_ids"] + end
            assert prompt_length == len(begin) + len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def test_lengths_and_rows(small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path) -> None:
    corpus = make_corpus(small, tokenizer, tmp_path)
    rows, prompt_lengths = corpus.rows(np.arange(len(corpus)))
    assert corpus.lengths.tolist() == [len(row) for row in rows]
    assert all(0 < prompt < len(row) for prompt, row in zip(prompt_lengths, rows, strict=True))
    picked, _ = corpus.rows([4, 1])
    assert [row.tolist() for row in picked] == [rows[4].tolist(), rows[1].tolist()]
    assert {row.dtype for row in rows} == {np.dtype(np.int64)}


def test_what_looks_like_an_id_in_a_review_stays_words(
    small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path
) -> None:
    corpus = make_corpus(small, tokenizer, tmp_path)
    rows, prompt_lengths = corpus.rows(np.arange(len(corpus)))
    mains = [row[prompt:] for row, prompt in zip(rows, prompt_lengths, strict=True)]
    assert max(main.max() for main in mains) < tokenizer.id_offset
    assert REVIEWS[2] in [tokenizer.decode(main[:-1]) for main in mains]
    prompts = [row[:prompt] for row, prompt in zip(rows, prompt_lengths, strict=True)]
    ids = [prompt[prompt >= tokenizer.id_offset] - tokenizer.id_offset for prompt in prompts]
    users_first = [one.tolist() for one in ids]
    assert users_first == [[3], [4], [6], [3], [4], [0], [0, 6], [1, 4], [2, 5]]  # users 0..2, items 3 + item_index


def test_held_out_reviews_are_not_in_the_corpus(
    synthetic_dataset: SyntheticDataset, data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer(tiny_backbones["gpt2"], data)
    corpus = make_corpus(data, tokenizer, tmp_path)
    assert corpus.documents is not None
    users, items = (data.users["user_id"].to_pylist(), data.items["item_id"].to_pylist())
    reviews = {(row["user_id"], row["item_id"]): row["review"] for row in synthetic_dataset.interactions.to_pylist()}
    held = [row for row in data.interactions.to_pylist() if row["split"] != "train"]
    secrets = {reviews[users[row["user_index"]], items[row["item_index"]]] for row in held} - {None, ""}
    open_pairs = {(row["user_index"], row["item_index"]) for row in data.reviews().to_pylist()}
    open_texts = set(data.reviews()["review"].to_pylist())
    pairs, texts = set(), set()
    for row in corpus.documents.with_format(None).filter(lambda row: row["kind"] == "review"):
        prompt, main = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] : -1]
        user, item = (token - tokenizer.id_offset for token in prompt if token >= tokenizer.id_offset)
        pairs.add((user, item - data.num_users))
        texts.add(tokenizer.decode(main))
    assert len(secrets) > 50
    assert pairs == open_pairs
    assert texts == open_texts
    assert not texts & (secrets - open_texts)


def forbid_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(self: TextCorpus, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(TextCorpus, "_encode", no)


def test_the_cache_is_read_again(
    small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_corpus(small, tokenizer, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4  # title, categories, biography, review
    forbid_tokenizing(monkeypatch)
    again = make_corpus(small, tokenizer, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    for ours, theirs in zip(again.rows(range(len(again)))[0], first.rows(range(len(first)))[0], strict=True):
        assert ours.tolist() == theirs.tolist()


def with_review(data: RecommendationData, text: str) -> RecommendationData:
    reviews = data.interactions["review"].to_pylist()
    column = pa.array([text, *reviews[1:]], pa.large_string())
    return dataclasses.replace(data, interactions=data.interactions.set_column(3, "review", column))


def with_more_users(data: RecommendationData) -> RecommendationData:
    more = pa.table({"user_id": ["dan"], "biography": [""]})
    return dataclasses.replace(data, users=pa.concat_tables([data.users, more]))


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({"max_text_tokens": 5}, {"title", "categories", "biography", "review"}),
        ({"prompts": Prompts(review="{user} on {item}:")}, {"review"}),
        ({"prompts": Prompts(item_text="{item} has {column}:")}, {"title", "categories"}),
        ({"data": "another review"}, {"review"}),
        ({"data": "more users"}, {"title", "categories", "biography", "review"}),
        ({"tokenizer": "another"}, {"title", "categories", "biography", "review"}),
    ],
)
def test_the_cache_is_not_read_for_other_documents(
    changed: dict[str, Any], kinds: set[str], small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path
) -> None:
    make_corpus(small, tokenizer, tmp_path)
    before = set(tmp_path.iterdir())
    data = small
    if changed.get("data") == "another review":
        data = with_review(small, "Lovely and heavy.")
    if changed.get("data") == "more users":
        data = with_more_users(small)
        tokenizer = CLLM4RecTokenizer.from_backbone(tokenizer.name_or_path, num_users=4, num_items=4)
    if "tokenizer" in changed:
        tokenizer = word_piece_tokenizer(["red lamp tea pen likes solid"], small)
    rest = {name: value for name, value in changed.items() if name not in ("data", "tokenizer")}
    make_corpus(data, tokenizer, tmp_path, **rest)
    assert {path.name.split("-")[0] for path in set(tmp_path.iterdir()) - before} == kinds


def test_a_text_beyond_the_context_is_an_error(small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path) -> None:
    longest = int(make_corpus(small, tokenizer, tmp_path).lengths.max())
    make_corpus(small, tokenizer, tmp_path, context_length=longest).check_lengths()
    message = f"1 text documents are longer .* context of {longest - 1} tokens .*longest has {longest}.*max_text_tokens"
    with pytest.raises(ValueError, match=message):
        make_corpus(small, tokenizer, tmp_path, context_length=longest - 1).check_lengths()


def test_max_text_tokens_cuts_main_texts_only(small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path) -> None:
    whole, cut = make_corpus(small, tokenizer, tmp_path), make_corpus(small, tokenizer, tmp_path, max_text_tokens=6)
    (rows, prompts), (cut_rows, cut_prompts) = (one.rows(range(len(one))) for one in (whole, cut))
    assert prompts.tolist() == cut_prompts.tolist()
    shortened = 0
    for row, cut_row, prompt in zip(rows, cut_rows, prompts, strict=True):
        main = row[prompt:-1]  # without the end token
        if len(main) < 6:
            assert cut_row.tolist() == row.tolist()
        else:  # cut off: the text did not end there
            assert cut_row.tolist() == row[: prompt + 6].tolist()
            shortened += 1
    assert 0 < shortened < len(rows)


def test_data_without_texts(small: RecommendationData, tokenizer: CLLM4RecTokenizer, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        small,
        users=small.users.select(["user_id"]),
        items=small.items.select(["item_id"]),
        interactions=small.interactions.drop_columns(["review"]),
    )
    corpus = make_corpus(bare, tokenizer, tmp_path)
    assert len(corpus) == 0
    assert corpus.lengths.tolist() == []
    with pytest.raises(ValueError, match="this data has no texts"):
        corpus.rows([0])


def test_text_column(small: RecommendationData) -> None:
    assert text_column(small.items, "categories") == ["Home, Lamps", "Pantry", "", ""]
    assert text_column(small.items, "title") == ["Red lamp", "Tea", "", "Pen"]


def test_item_rows_start_from_the_mean_of_their_words(small: RecommendationData, tokenizer: CLLM4RecTokenizer) -> None:
    words = np.random.default_rng(0).normal(size=(tokenizer.id_offset, 3)).astype(np.float32)
    rows = initial_item_rows(small, tokenizer, words, ["title", "brand", "categories"])  # there is no brand
    for item, text in enumerate(["Red lamp Home, Lamps", "Tea Pantry"]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        np.testing.assert_allclose(rows[item], np.mean([words[one] for one in ids], axis=0), rtol=1e-6)
    titles = initial_item_rows(small, tokenizer, words, ["title"])
    assert np.isnan(titles).all(axis=1).tolist() == [False, False, True, False]
    assert np.isnan(initial_item_rows(small, tokenizer, words, ["brand"])).all()


# ---- Histories ----


def histories(*rows: list[int]) -> Histories:
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Histories(indptr, np.array([item for row in rows for item in row], dtype=np.int32))


FIRST = np.array([0])
ROWS = st.lists(st.lists(st.integers(0, 99), max_size=12, unique=True), min_size=1, max_size=6)


def test_users_without_a_history_have_no_document() -> None:
    corpus = HistoryCorpus(histories([3, 1], [], [2]), seed=0)
    assert corpus.users.tolist() == [0, 2]
    assert corpus.lengths.tolist() == [2, 0, 1]
    assert [row.tolist() for row in corpus.rows(np.array([2, 1, 0]))] == [[2], [], [3, 1]]


@given(rows=ROWS, seed=st.integers(0, 2**32), epoch=st.integers(0, 100))
def test_reordering_is_a_permutation_that_seed_epoch_and_user_fix(rows: list[list[int]], seed: int, epoch: int) -> None:
    corpus, users = HistoryCorpus(histories(*rows), seed), np.arange(len(rows))
    orders = [order.tolist() for order in corpus.reordered(users, epoch)]
    assert [sorted(order) for order in orders] == [sorted(row) for row in rows]
    assert [row.tolist() for row in corpus.rows(users)] == rows
    # Independent of which other users are read, and in which order.
    assert [order.tolist() for order in corpus.reordered(users[::-1], epoch)] == orders[::-1]
    assert [corpus.reordered(users[[user]], epoch)[0].tolist() for user in users] == orders
    longer = HistoryCorpus(histories(*rows, [1, 2, 3]), seed)
    assert [order.tolist() for order in longer.reordered(users, epoch)] == orders


def test_orders_are_new_for_each_epoch_user_and_seed() -> None:
    row = list(range(20))
    orders = {
        tuple(order.tolist())
        for seed in range(3)
        for epoch in range(5)
        for order in HistoryCorpus(histories(row, row), seed).reordered(np.arange(2), epoch)
    }
    assert len(orders) == 3 * 2 * 5


def test_every_order_is_as_likely() -> None:
    corpus = HistoryCorpus(histories([0, 1, 2]), seed=5)
    orders = [tuple(corpus.reordered(FIRST, epoch)[0].tolist()) for epoch in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 140  # 200 are expected, four and a half standard deviations away


def test_without_reordering_the_order_of_the_data_stays() -> None:
    corpus = HistoryCorpus(histories([5, 3, 9]), seed=0, reorder=False)
    assert [corpus.reordered(FIRST, epoch)[0].tolist() for epoch in range(3)] == [[5, 3, 9]] * 3


@given(
    rows=ROWS,
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 100),
    share=st.floats(0.01, 0.99),
    reorder=st.booleans(),
)
def test_holdout_and_rest_are_a_partition(rows: list[list[int]], seed: int, epoch: int, share: float, reorder: bool) -> None:
    corpus = HistoryCorpus(histories(*rows), seed, reorder)
    users = corpus.users
    for user, kept, held in zip(users, *corpus.split_holdout(users, epoch, share), strict=True):
        row = rows[user]
        assert len(held) == max(1, int(share * len(row)))
        assert sorted([*kept, *held]) == sorted(row)  # items of a history are unique: disjoint, and the union is all
        if not reorder:
            assert kept.tolist() == [item for item in row if item in set(kept.tolist())]
        alone = HistoryCorpus(histories(*rows), seed, reorder).split_holdout(np.array([user]), epoch, share)
        assert [part[0].tolist() for part in alone] == [kept.tolist(), held.tolist()]


def test_holdout_sizes_by_hand() -> None:
    corpus = HistoryCorpus(histories([1], [1, 2, 3, 4], list(range(10)), list(range(19))), seed=0)
    assert corpus.split_holdout(np.arange(4), 0, 0.2)[1].lengths.tolist() == [1, 1, 2, 3]


def test_every_item_is_held_out_equally_often() -> None:
    corpus = HistoryCorpus(histories(list(range(5))), seed=1)
    held = [corpus.split_holdout(FIRST, epoch, 0.2)[1][0][0] for epoch in range(1000)]
    assert min(np.bincount(held, minlength=5)) > 140  # 200 are expected


def test_every_item_but_the_first_is_the_next_one_equally_often() -> None:
    corpus = HistoryCorpus(histories([3], [5, 1, 4, 2]), seed=1, reorder=False)
    assert [part[0].tolist() for part in corpus.split_next(FIRST, 0)] == [[], [3]]
    targets = []
    for epoch in range(900):
        (_, read), (_, target) = corpus.split_next(np.arange(2), epoch)
        assert [*read, *target] == [5, 1, 4, 2][: len(read) + 1]
        targets.append(int(target[0]))
    assert min(targets.count(item) for item in (1, 4, 2)) > 250  # 300 are expected
