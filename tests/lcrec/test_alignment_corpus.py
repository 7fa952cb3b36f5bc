"""Alignment corpora: documents by hand, what the loss counts, what an epoch draws, and no leak of held-out pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.lcrec import token_texts
from modeling_cllm4rec.lcrec.alignment_corpus import AlignmentCorpus
from modeling_cllm4rec.lcrec.alignment_documents import windows
from modeling_cllm4rec.lcrec.alignment_tasks import ALIGNMENT_TASKS
from modeling_cllm4rec.lcrec.alignment_templates import (
    load_templates,
    query_segments,
    recommendation_segments,
    separator_ids,
)
from modeling_cllm4rec.lcrec.intentions import Intentions
from modeling_cllm4rec.lcrec.prompts import semantic_id_prompt
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens

CODES = np.array([[0, 1], [1, 1], [2, 0], [0, 2]], dtype=np.int32)
TITLES = ["Red <a_0> lamp", "Tea", "Pen!", "Soap"]
DESCRIPTIONS = ["Bright.", "Herbal.", "Writes <|endoftext|> well.", None]
QUERIES = [["a lamp"], ["tea", "herbs"], ["a pen"], ["soap"]]
PREFERENCES = [["Likes light.", "Lately tea."], [], ["Likes tea."]]
INTENTIONS = Intentions(QUERIES, PREFERENCES, [["I write", "thin"], [], []], "by hand")
PLAIN = """
answer: " =>"
seqrec: ["Next: {history}"]
item2index: {title: ['T "{title}"'], description: ['D "{description}"'], both: ['B "{title}" "{description}"']}
index2item: {title: ["t {index}"], description: ["d {index}"], both: ["b {index}."]}
fusionseqrec: {title: ["after {history} t"], description: ["after {history} d"], index: ['after "{title_history}"']}
itemsearch:
  query: ['Q "{query}"']
  history: ['{history} and "{query}"']
  preference: ['{history} taste "{preference}"']
  both: ['{history} taste "{preference}" and "{query}"']
preferenceobtain: ["taste of {history}"]
"""


@pytest.fixture(scope="module")
def small() -> RecommendationData:
    """Make the histories of Ann (lamp, tea, pen), Ben (soap alone) and Cat (tea, soap), and a validation and a test pair."""
    return RecommendationData(
        users=pa.table({"user_id": ["ann", "ben", "cat"]}),
        items=pa.table({"item_id": ["p", "q", "r", "s"], "title": TITLES, "description": DESCRIPTIONS}),
        interactions=pa.table(
            {
                "user_index": pa.array([0, 0, 0, 0, 1, 2, 2, 2], pa.int32()),
                "item_index": pa.array([0, 1, 2, 3, 3, 1, 3, 0], pa.int32()),
                "split": ["train", "train", "train", "validation", "train", "train", "train", "test"],
            }
        ),
        info={},
        folder=Path("small"),
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_backbones: dict[str, Path]) -> PreTrainedTokenizerBase:
    """Load a byte-level tokenizer with a token for beginning and end, and the tokens of 2 levels of 3 codes."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    add_semantic_id_tokens(tokenizer, num_levels=2, codebook_size=3)
    return tokenizer


def word_piece_tokenizer(texts: list[str], num_levels: int, codebook_size: int) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    add_semantic_id_tokens(tokenizer, num_levels, codebook_size)
    return tokenizer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a YAML file with one short template of each kind."""
    path = tmp_path_factory.mktemp("templates") / "plain.yaml"
    path.write_text(PLAIN)
    return path


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.get_vocab()["<a_0>"]


def make(data: RecommendationData, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> AlignmentCorpus:
    arguments: dict[str, Any] = {"context_length": 128, "on_missing_text": "title-only", "intentions": INTENTIONS, **changes}
    semantic_ids = arguments.pop("semantic_ids", SemanticIds(CODES, 3))
    return AlignmentCorpus(data, tokenizer, semantic_ids, first_token(tokenizer), **arguments)


def make_whole(data: RecommendationData, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> AlignmentCorpus:
    """Make a corpus of the synthetic data set, whose items get the codes of their number in base 7."""
    items = np.arange(data.num_items)
    semantic_ids = SemanticIds(np.stack([items // 7, items % 7], axis=1).astype(np.int32), 7)
    return make(data, tokenizer, **{"semantic_ids": semantic_ids, "intentions": None, "context_length": 256, **changes})


@pytest.fixture(scope="module")
def whole_tokenizer(tiny_backbones: dict[str, Path]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    add_semantic_id_tokens(tokenizer, num_levels=2, codebook_size=7)
    return tokenizer


def texts_by_task(
    corpus: AlignmentCorpus, tokenizer: PreTrainedTokenizerBase, epoch: int = 0
) -> dict[str, list[tuple[str, str]]]:
    """Return task -> (document, counted part) as texts, without the beginning token."""
    documents: dict[str, list[tuple[str, str]]] = {}
    numbers = corpus.documents(epoch)
    rows, counted = corpus.rows(numbers, epoch)
    for task, row, counts in zip(corpus.tasks_of(numbers), rows, counted, strict=True):
        assert row.dtype == np.int64 and counts.dtype == np.bool_ and len(row) == len(counts)
        assert row[0] == tokenizer.bos_token_id
        documents.setdefault(str(task), []).append((tokenizer.decode(row[1:]), tokenizer.decode(row[counts])))
    return documents


# ---- Templates ----


def test_as_many_templates_as_the_paper_has() -> None:
    counts = {task: {kind: len(group) for kind, group in kinds.items()} for task, kinds in load_templates().groups.items()}
    assert counts == {
        "seqrec": {"": 17},
        "item2index": {"title": 6, "description": 6, "both": 7},
        "index2item": {"title": 6, "description": 6, "both": 5},
        "fusionseqrec": {"title": 4, "description": 4, "index": 4},
        "itemsearch": {"query": 5, "history": 2, "preference": 1, "both": 3},
        "preferenceobtain": {"": 11},
    }
    assert list(counts) == list(ALIGNMENT_TASKS)


def test_templates_are_short_different_and_quote_texts() -> None:
    templates = load_templates()
    everything = [text for kinds in templates.groups.values() for group in kinds.values() for text in group]
    assert len(set(everything)) == len(everything)
    for text in everything:
        assert 3 <= len(text.split()) <= 20
        for name in ("title", "description", "query", "preference", "title_history"):
            assert f"{{{name}}}" not in text or f'"{{{name}}}"' in text


def test_own_templates_replace_only_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("seqrec: ['Liste: {history}']\nindex2item: {title: ['Titel von {index}?']}\nanswer: ' Antwort:'\n")
    own, packaged = load_templates(path), load_templates()
    assert own.answer == " Antwort:"
    assert own.groups["seqrec"] == {"": ("Liste: {history}",)}
    assert own.groups["index2item"] == {**packaged.groups["index2item"], "title": ("Titel von {index}?",)}
    assert {**own.groups, "seqrec": 0, "index2item": 0} == {**packaged.groups, "seqrec": 0, "index2item": 0}
    path.write_text("preferenceobtain: ['Geschmack? {history}']")
    assert load_templates(path).answer == packaged.answer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seqrek: ['{history}']", "unknown task 'seqrek'; did you mean 'seqrec'"),
        ("item2index: {titel: ['{title}']}", "unknown kind of item2index 'titel'; did you mean 'title'"),
        ("item2index: ['{title}']", "item2index in .* must map title, description, both to lists"),
        ("seqrec: []", "seqrec in .* must be a list of one template or more"),
        ("seqrec: 'one {history}'", "seqrec in .* must be a list of one template or more"),
        ("seqrec: ['no place']", r"has 'no place'; it must hold each of \{history\} once and no other"),
        ("seqrec: ['{history} {history}']", r"it must hold each of \{history\} once"),
        ("itemsearch: {history: ['{query}']}", r"itemsearch.history in .* it must hold each of \{history\}, \{query\} once"),
        ("itemsearch: {preference: ['{history}']}", r"itemsearch.preference .* hold each of \{history\}, \{preference\} once"),
        ("index2item: {title: ['{index} {title}']}", r"it must hold each of \{index\} once and no other"),
        ("seqrec: ['{history} and then?']", r"has '\{history\} and then\?'; it must end with \{history\}"),
        ("seqrec: ['{history']", "which is no template"),
        ("seqrec: [3]", "which is no template"),
        ("answer: [1]", r"answer in .* is \[1\]; it must be a text"),
        ("- seqrec", "must map tasks to templates, got list"),
        ("seqrec: [", "is not YAML"),
    ],
)
def test_invalid_templates(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_templates(path)


def test_a_file_of_templates_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="templates: there is no file"):
        load_templates(tmp_path / "none.yaml")


def test_pieces_for_the_model(tokenizer: PreTrainedTokenizerBase, plain: Path) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    templates = load_templates(plain)
    begin = [tokenizer.bos_token_id]
    assert recommendation_segments(templates, tokenizer) == [[begin, ids("Next:"), "items"]]
    assert query_segments(templates, tokenizer) == {
        "alone": [[begin, ids('Q "'), "query", ids('" =>')]],
        "history": [[begin, "items", ids(' and "'), "query", ids('" =>')]],
    }
    assert separator_ids(tokenizer) == ids(",")
    packaged = recommendation_segments(load_templates(), tokenizer)
    assert len(packaged) == 17 and all(pieces[-1] == "items" for pieces in packaged)


# ---- Documents by hand ----


def test_documents_by_hand(small: RecommendationData, tokenizer: PreTrainedTokenizerBase, plain: Path) -> None:
    """One template of each kind; an item without description gets title templates only.

    Ann has two preferences, and two intentions of her own for the pen; Cat has one preference, and the item's query.
    """
    lamp, tea, pen, soap = "<a_0><b_1>", "<a_1><b_1>", "<a_2><b_0>", "<a_0><b_2>"
    end = tokenizer.eos_token
    corpus = make(small, tokenizer, templates=load_templates(plain))
    assert len(corpus) == 2 + 4 + 4 + 3 + (4 + 2) + 2
    seen: dict[str, set[tuple[str, str]]] = {}
    for epoch in range(120):
        for task, documents in texts_by_task(corpus, tokenizer, epoch).items():
            seen.setdefault(task, set()).update(documents)
    assert seen["seqrec"] == {(f"Next:{lamp},{tea},{pen}", tea + pen), (f"Next:{tea},{soap}", soap)}
    named = dict(zip((lamp, tea, pen, soap), zip(TITLES, DESCRIPTIONS, strict=True), strict=True))
    assert seen["item2index"] == {
        *((f'T "{title}" =>{index}', index) for index, (title, _) in named.items()),
        *((f'D "{text}" =>{index}', index) for index, (_, text) in named.items() if text),
        *((f'B "{title}" "{text}" =>{index}', index) for index, (title, text) in named.items() if text),
    }
    assert seen["index2item"] == {
        *((f"t{index} =>{title}{end}", title + end) for index, (title, _) in named.items()),
        *((f"d{index} =>{text}{end}", text + end) for index, (_, text) in named.items() if text),
        (f"b{lamp}. =>Red <a_0> lamp. Bright.{end}", f"Red <a_0> lamp. Bright.{end}"),
        (f"b{tea}. =>Tea. Herbal.{end}", f"Tea. Herbal.{end}"),
        (f"b{pen}. =>Pen! Writes {end} well.{end}", f"Pen! Writes {end} well.{end}"),
    }
    assert seen["fusionseqrec"] == {
        (f"after{lamp} t =>Tea{end}", f"Tea{end}"),
        (f"after{lamp} d =>Herbal.{end}", f"Herbal.{end}"),
        (f'after "Red <a_0> lamp" =>{tea}', tea),
        (f"after{lamp},{tea} t =>Pen!{end}", f"Pen!{end}"),
        (f"after{lamp},{tea} d =>Writes {end} well.{end}", f"Writes {end} well.{end}"),
        (f'after "Red <a_0> lamp; Tea" =>{pen}', pen),
        (f"after{tea} t =>Soap{end}", f"Soap{end}"),
        (f'after "Tea" =>{soap}', soap),
    }
    assert seen["itemsearch"] == {
        (f'Q "a lamp" =>{lamp}', lamp),
        (f'Q "tea" =>{tea}', tea),
        (f'Q "herbs" =>{tea}', tea),
        (f'Q "a pen" =>{pen}', pen),
        (f'Q "soap" =>{soap}', soap),
        *((f'{lamp},{tea} and "{query}" =>{pen}', pen) for query in ("I write", "thin")),
        *((f'{lamp},{tea} taste "{taste}" =>{pen}', pen) for taste in PREFERENCES[0]),
        *((f'{lamp},{tea} taste "{taste}" and "{q}" =>{pen}', pen) for taste in PREFERENCES[0] for q in ("I write", "thin")),
        (f'{tea} and "soap" =>{soap}', soap),
        (f'{tea} taste "Likes tea." =>{soap}', soap),
        (f'{tea} taste "Likes tea." and "soap" =>{soap}', soap),
    }
    assert seen["preferenceobtain"] == {
        *((f"taste of{lamp},{tea} =>{text}{end}", f"{text}{end}") for text in PREFERENCES[0]),
        (f"taste of{tea} =>Likes tea.{end}", f"Likes tea.{end}"),
    }


def test_a_document_in_numbers(small: RecommendationData, tokenizer: PreTrainedTokenizerBase, plain: Path) -> None:
    corpus = make(small, tokenizer, templates=load_templates(plain), tasks={"seqrec": 1})
    first, comma = first_token(tokenizer), tokenizer(",")["input_ids"][-1]
    words = tokenizer("Next:", add_special_tokens=False)["input_ids"]
    (row, _), (counts, _) = corpus.rows(corpus.documents(0), 0)
    lamp, tea, pen = ([first + a, first + 3 + b] for a, b in CODES[:3])
    assert row.tolist() == [tokenizer.bos_token_id, *words, *lamp, comma, *tea, comma, *pen]
    assert counts.tolist() == [False] * (1 + len(words) + 3) + [True, True, False, True, True]


def test_what_looks_like_an_index_in_a_text_stays_text(small: RecommendationData, tokenizer: PreTrainedTokenizerBase) -> None:
    first = first_token(tokenizer)
    corpus = make(small, tokenizer, tasks={"item2index": 1, "index2item": 1})
    numbers = corpus.documents(0)
    literal = 0
    for epoch in range(10):
        rows, counted = corpus.rows(numbers, epoch)
        for task, row, counts in zip(corpus.tasks_of(numbers), rows, counted, strict=True):
            index_places = counts if task == "item2index" else ~counts
            assert (row >= first).sum() == 2 and (row[index_places] >= first).sum() == 2
            assert (row[1:-1] != tokenizer.eos_token_id).all()  # nor does <|endoftext|> in a description end it
            literal += "Red <a_0> lamp" in tokenizer.decode(row) or "Writes <|endoftext|> well" in tokenizer.decode(row)
    assert literal > 10


def test_word_pieces_have_no_beginning_and_end_with_their_separator(small: RecommendationData, plain: Path) -> None:
    tokenizer = word_piece_tokenizer([*TITLES, PLAIN, "a b c d"], 2, 3)
    corpus = make(small, tokenizer, templates=load_templates(plain))
    numbers = corpus.documents(0)
    rows, counted = corpus.rows(numbers, 0)
    for task, row, counts in zip(corpus.tasks_of(numbers), rows, counted, strict=True):
        assert tokenizer.cls_token_id not in row
        words = task in ("index2item", "preferenceobtain") or (task == "fusionseqrec" and row[-1] < first_token(tokenizer))
        assert (row[-1] == tokenizer.sep_token_id) == words
        assert counts[-1]


def test_apart_is_a_document_for_each_prefix(small: RecommendationData, tokenizer: PreTrainedTokenizerBase, plain: Path) -> None:
    corpus = make(small, tokenizer, templates=load_templates(plain), tasks={"seqrec": 1}, seqrec="apart")
    lamp, tea, pen, soap = "<a_0><b_1>", "<a_1><b_1>", "<a_2><b_0>", "<a_0><b_2>"
    assert texts_by_task(corpus, tokenizer)["seqrec"] == [
        (f"Next:{lamp},{tea}", tea),
        (f"Next:{lamp},{tea},{pen}", pen),
        (f"Next:{tea},{soap}", soap),
    ]


@pytest.mark.parametrize("mode", ["together", "apart"])
@pytest.mark.parametrize("reorder", [0.0, 0.5, 1.0])
def test_histories_in_another_order(
    mode: str, reorder: float, data: RecommendationData, whole_tokenizer: PreTrainedTokenizerBase, plain: Path
) -> None:
    first = first_token(whole_tokenizer)
    made = {"templates": load_templates(plain), "tasks": {"seqrec": 1}, "seqrec": mode}
    ordered = make_whole(data, whole_tokenizer, **made)
    corpus = make_whole(data, whole_tokenizer, reorder=reorder, **made)
    numbers = corpus.documents(0)
    changed = []
    for epoch in (0, 1):
        (rows, counted), (new_rows, new_counted) = ordered.rows(numbers, epoch), corpus.rows(numbers, epoch)
        for old, counts, new, new_counts in zip(rows, counted, new_rows, new_counted, strict=True):
            assert counts.tolist() == new_counts.tolist()
            old_items, new_items = ([int(token) for token in row if first <= token < first + 7] for row in (old, new))
            assert sorted(old_items) == sorted(new_items)
            if mode == "apart":
                assert old[-2:].tolist() == new[-2:].tolist()
            if len(set(old_items)) > 2:
                changed.append(old.tolist() != new.tolist())
    assert {0.0: 0, 0.5: 0.2, 1.0: 0.6}[reorder] <= np.mean(changed) <= {0.0: 0, 0.5: 0.55, 1.0: 1}[reorder]
    assert (np.array(changed[: len(changed) // 2]) == changed[len(changed) // 2 :]).all() == (reorder == 0)  # drawn again


# ---- What training reads is what inference reads ----


@pytest.mark.parametrize("mode", ["together", "apart"])
@pytest.mark.parametrize("max_history", [3, 20])
def test_every_target_comes_after_the_prompt_of_inference(
    mode: str, max_history: int, data: RecommendationData, whole_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = whole_tokenizer
    corpus = make_whole(data, tokenizer, tasks={"seqrec": 1}, seqrec=mode, max_history=max_history)
    codes, first = np.stack([np.arange(data.num_items) // 7, np.arange(data.num_items) % 7], axis=1), first_token(tokenizer)
    prompts = recommendation_segments(load_templates(), tokenizer)
    histories = data.histories("train")
    users = [histories.items[start:end].tolist() for start, end in zip(histories.indptr, histories.indptr[1:], strict=False)]
    targets = []
    rows, counted = corpus.rows(corpus.documents(0), 0)
    for row, counts in zip(rows, counted, strict=True):
        items = [int(a - first) * 7 + int(b - first - 7) for a, b in zip(row, row[1:], strict=False) if first <= a < first + 7]
        starts = np.flatnonzero(counts)[::2]
        assert len(starts) == (len(items) - 1 if mode == "together" else 1)
        assert len(items) <= max_history + 1
        targets += items[1:] if mode == "together" else items[-1:]
        assert any(items == user[place : place + len(items)] for user in users for place in range(len(user)))
        known = {
            tuple(semantic_id_prompt(pieces, codes[items[:many]], separator_ids(tokenizer), first, 7).tolist())
            for pieces in prompts
            for many in range(1, len(items))
        }
        for start in starts:
            assert tuple(row[:start].tolist()) in known
            assert counts[start : start + 2].all()
    assert sorted(targets) == sorted(item for user in users for item in user[1:])  # each item but the first, once


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=5), most=st.integers(1, 6))
def test_windows_make_each_item_but_the_first_a_target_once(counts: list[int], most: int) -> None:
    indptr = np.cumsum([0, *counts]).astype(np.int64)
    user, begin, end = windows(Histories(indptr, np.arange(indptr[-1], dtype=np.int32)), most)
    assert ((indptr[user] <= begin) & (begin < end) & (end < indptr[user + 1]) & (end - begin <= most)).all()
    targets = [place for a, b in zip(begin, end, strict=True) for place in range(a + 1, b + 1)]
    later = [range(start + 1, start + count) for start, count in zip(indptr, counts, strict=False)]
    assert sorted(targets) == [place for places in later for place in places]


# ---- What an epoch reads ----


@settings(max_examples=15)
@given(
    max_history=st.integers(1, 8),
    context_length=st.integers(140, 200),
    max_text_tokens=st.integers(1, 40),
    mode=st.sampled_from(["together", "apart"]),
    epoch=st.integers(0, 1000),
)
def test_lengths_are_those_of_the_rows_and_fit(
    data: RecommendationData,
    whole_tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    max_history: int,
    context_length: int,
    max_text_tokens: int,
    mode: str,
    epoch: int,
) -> None:
    corpus = make_whole(
        data,
        whole_tokenizer,
        max_history=max_history,
        context_length=context_length,
        max_text_tokens=max_text_tokens,
        seqrec=mode,
        cache_folder=cache,
    )
    numbers = np.random.default_rng(epoch).permutation(len(corpus))[:300]
    rows, counted = corpus.rows(numbers, epoch)
    assert corpus.lengths(numbers, epoch).tolist() == [len(row) for row in rows]
    assert max(map(len, rows)) <= context_length
    assert all(counts.any() and not counts[0] for counts in counted)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_an_epoch_is_drawn_from_seed_and_number_alone(
    data: RecommendationData, whole_tokenizer: PreTrainedTokenizerBase, cache: Path
) -> None:
    def rows_of(corpus: AlignmentCorpus, numbers: np.ndarray, epoch: int) -> list[list[int]]:
        return [row.tolist() for row in corpus.rows(numbers, epoch)[0]]

    tasks = {"seqrec": 0.5, "fusionseqrec": 0.25, "itemsearch": 1.0}
    corpus, again = (make_whole(data, whole_tokenizer, tasks=tasks, seed=5, cache_folder=cache) for _ in range(2))
    other = make_whole(data, whole_tokenizer, tasks=tasks, seed=6, cache_folder=cache)
    numbers = corpus.documents(3)
    rows = rows_of(corpus, numbers, 3)
    corpus.rows(numbers, 4)  # whatever was read in between
    assert again.documents(3).tolist() == numbers.tolist()
    assert rows_of(again, numbers, 3) == rows
    assert rows_of(corpus, numbers[::-1], 3) == rows[::-1]
    assert [row for number in numbers for row in rows_of(again, np.array([number]), 3)] == rows
    for changed in (corpus.documents(4), other.documents(3)):
        assert changed.tolist() != numbers.tolist()
    assert np.mean([a != b for a, b in zip(rows_of(corpus, numbers, 4), rows, strict=True)]) > 0.6
    assert np.mean([a != b for a, b in zip(rows_of(other, numbers, 3), rows, strict=True)]) > 0.6


def test_shares_of_tasks(data: RecommendationData, whole_tokenizer: PreTrainedTokenizerBase, cache: Path) -> None:
    whole = make_whole(data, whole_tokenizer, cache_folder=cache)
    everything = whole.documents(0)
    assert everything.tolist() == list(range(len(whole)))
    count = {task: int((whole.tasks_of(everything) == task).sum()) for task in ALIGNMENT_TASKS}
    shares = {"preferenceobtain": 1.0, "seqrec": 0.5, "item2index": 0.001}
    some = make_whole(data, whole_tokenizer, tasks=shares, cache_folder=cache)
    drawn = some.documents(0)
    assert len(set(drawn.tolist())) == len(drawn)
    assert {task: int((some.tasks_of(drawn) == task).sum()) for task in ALIGNMENT_TASKS if task in shares} == {
        "seqrec": round(count["seqrec"] / 2),
        "item2index": 1,
        "preferenceobtain": count["preferenceobtain"],
    }
    seen = {number for epoch in range(20) for number in some.documents(epoch)[: round(count["seqrec"] / 2)]}
    assert len(seen) == count["seqrec"]  # over the epochs, every document has its turn


def test_every_template_has_its_turn(data: RecommendationData, whole_tokenizer: PreTrainedTokenizerBase, cache: Path) -> None:
    corpus = make_whole(data, whole_tokenizer, cache_folder=cache)
    number = int(np.flatnonzero(corpus.tasks_of(np.arange(len(corpus))) == "item2index")[0])
    drawn = [corpus._plan(np.array([number]), epoch).template[0] for epoch in range(760)]
    counts = np.bincount(drawn)[min(drawn) :]
    assert len(counts) == 19
    assert counts.min() > 15  # 40 are expected


# ---- Texts ----


def test_long_texts_are_cut_only_when_asked(small: RecommendationData, tokenizer: PreTrainedTokenizerBase, plain: Path) -> None:
    items = small.items.set_column(1, "title", pa.array([TITLES[0], "word " * 10_000, *TITLES[2:]]))
    long = dataclasses.replace(small, items=items)
    message = r"documents of item2index do not fit the context of 128 tokens, such as those of item_id \['q'\].*max_text_tokens"
    with pytest.raises(ValueError, match=message):
        make(long, tokenizer, templates=load_templates(plain))
    corpus = make(long, tokenizer, templates=load_templates(plain), max_text_tokens=4, tasks={"index2item": 1})
    title = tokenizer("word " * 10, add_special_tokens=False)["input_ids"][:4]
    whole = tokenizer("Tea", add_special_tokens=False)["input_ids"]
    assert len(whole) <= 4
    answers = set()
    for epoch in range(20):
        (row, *_), (counts, *_) = corpus.rows([1, 1], epoch)
        answers.add(tuple(row[counts].tolist()))
    assert tuple(title) in answers  # cut off: no end token
    assert all(answer[-1] == tokenizer.eos_token_id or len(answer) == 4 for answer in answers)


def test_seqrec_alone_needs_no_texts(small: RecommendationData, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = dataclasses.replace(small, items=small.items.select(["item_id"]))
    assert len(make(bare, tokenizer, tasks={"seqrec": 1}, intentions=None, on_missing_text="raise")) == 2


def test_items_without_text_are_named(small: RecommendationData, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="1 of 4 items have no description: 's'; .*'title-only'"):
        make(small, tokenizer, on_missing_text="raise")


def test_tokens_are_kept(
    small: RecommendationData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(small, tokenizer, cache_folder=tmp_path)
    files = set(tmp_path.iterdir())
    make(small, tokenizer, cache_folder=tmp_path, max_text_tokens=3)
    assert len(set(tmp_path.iterdir()) - files) == len(files) == 5  # title, description, both, queries, preferences
    with monkeypatch.context() as patched:
        patched.setattr(token_texts, "_encode", lambda *_: pytest.fail("encoded again"))
        again = make(small, tokenizer, cache_folder=tmp_path)
    rows = [corpus.rows(np.arange(len(corpus)), 1)[0] for corpus in (first, again)]
    assert [row.tolist() for row in rows[0]] == [row.tolist() for row in rows[1]]
    larger = word_piece_tokenizer([*TITLES, "a b c"], 2, 3)
    make(small, larger, cache_folder=tmp_path)
    assert len(set(tmp_path.iterdir())) == 15


# ---- No leak ----


def held_out_changed(data: RecommendationData, seed: int) -> RecommendationData:
    """Return the same folder with other validation and test pairs."""
    rows, generator = data.interactions.to_pylist(), np.random.default_rng(seed)
    known = {(row["user_index"], row["item_index"]) for row in rows}
    for row in rows:
        if row["split"] != "train":
            free = [item for item in range(data.num_items) if (row["user_index"], item) not in known]
            row["item_index"] = int(generator.choice(free))
            known.add((row["user_index"], row["item_index"]))
    return dataclasses.replace(data, interactions=pa.Table.from_pylist(rows, data.interactions.schema))


@pytest.mark.parametrize("mode", ["together", "apart"])
def test_nothing_of_held_out_pairs_gets_in(
    mode: str,
    data: RecommendationData,
    whole_tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    tmp_path: Path,
) -> None:
    """Two data folders that differ in validation and test pairs only give the same documents, to the bit."""
    info = {**data.info, "statistics": {**data.info["statistics"]}}
    other = dataclasses.replace(held_out_changed(data, 1), info=info).save(tmp_path / "other")
    other = RecommendationData.load(other.folder)
    assert other.interactions.num_rows == data.interactions.num_rows
    held = other.histories("validation", "test").items.tolist()
    assert held != data.histories("validation", "test").items.tolist()
    ours, theirs = (make_whole(one, whole_tokenizer, seqrec=mode, cache_folder=cache) for one in (data, other))
    assert set(ours.tasks_of(np.arange(len(ours)))) == set(ALIGNMENT_TASKS)
    for epoch in range(2):
        numbers = ours.documents(epoch)
        assert theirs.documents(epoch).tolist() == numbers.tolist()
        for mine, yours in zip(ours.rows(numbers, epoch), theirs.rows(numbers, epoch), strict=True):
            assert [row.tolist() for row in mine] == [row.tolist() for row in yours]


# ---- Wrong arguments ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"seqreg": 1}}, "tasks: unknown task 'seqreg'; did you mean 'seqrec'"),
        ({"tasks": {"seqrec": 0}}, r"tasks: seqrec has the share 0; it must lie in \(0, 1\]; leave the task out"),
        ({"tasks": {"seqrec": 1.5}}, "tasks: seqrec has the share 1.5"),
        ({"tasks": {"seqrec": float("nan")}}, "tasks: seqrec has the share nan"),
        ({"tasks": {}}, "tasks is empty; name at least one of seqrec, item2index"),
        ({"seqrec": "both"}, "seqrec is 'both'; it must be 'together' or 'apart'"),
        ({"max_history": 0}, "max_history is 0; it must be 1 or more"),
        ({"reorder": 1.5}, "reorder is 1.5; it must lie between 0 and 1"),
        ({"max_text_tokens": 0}, "max_text_tokens is 0; it must be 1 or more"),
        ({"semantic_ids": SemanticIds(CODES[:3], 3)}, "semantic_ids has 3 items and the data 4: it belongs to another catalogue"),
        (
            {"semantic_ids": SemanticIds(CODES, 4)},
            "so <a_3> should be token 403, but the tokenizer has None: it is not the tokenizer of this model",
        ),
        ({"context_length": 8, "tasks": {"seqrec": 1}}, "the longest template of seqrec has .* it does not fit the context of 8"),
        (
            {"intentions": dataclasses.replace(INTENTIONS, queries=INTENTIONS.queries[:2])},
            "one query or more for each of 4 items, and preferences and queries for each of 3 users, got 2, 3 and 3; make",
        ),
        ({"intentions": dataclasses.replace(INTENTIONS, user_queries=[[]])}, "for each of 3 users, got 4, 3 and 1; make them"),
        ({"intentions": dataclasses.replace(INTENTIONS, queries=[["a"], [], ["b"], ["c"]])}, "one query or more for each"),
    ],
)
def test_wrong_arguments(
    changes: dict[str, Any], message: str, small: RecommendationData, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=message):
        make(small, tokenizer, **changes)


def test_a_tokenizer_without_index_tokens(small: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    bare = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    with pytest.raises(
        ValueError, match="so <a_0> should be token 400, but the tokenizer has None: it is not the tokenizer of this model"
    ):
        AlignmentCorpus(small, bare, SemanticIds(CODES, 3), 400, context_length=128)


def test_a_task_without_documents_is_left_out(
    small: RecommendationData, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    one_each = dataclasses.replace(small, interactions=small.interactions.take([0, 4]))
    corpus = make(one_each, tokenizer)
    assert list(corpus.tasks) == ["item2index", "index2item", "itemsearch"] and len(corpus) == 12
    assert set(corpus.tasks_of(corpus.documents(0)).tolist()) == set(corpus.tasks)
    for task in ("seqrec", "fusionseqrec", "preferenceobtain"):
        words = f"{task} is left out, because it has no documents: no user has two training items"
        assert words in caplog.text
        with pytest.raises(ValueError, match=f"{task} has no documents, and no task is left: no user has two training items"):
            make(one_each, tokenizer, tasks={task: 1})
    caplog.clear()
    no_preferences = dataclasses.replace(INTENTIONS, preferences=[[], [], []])
    corpus = make(small, tokenizer, intentions=no_preferences)
    assert "preferenceobtain" not in corpus.tasks and "none of 2 has all texts of its templates" in caplog.text
    texts = [text for text, _ in texts_by_task(corpus, tokenizer)["itemsearch"]]
    assert len(texts) == 6 and not any("taste" in text for text in texts)


def test_without_titles_seqrec_is_left(
    small: RecommendationData, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    bare = dataclasses.replace(small, items=small.items.select(["item_id"]))
    assert list(make(bare, tokenizer, intentions=None).tasks) == ["seqrec"]
    assert "tasks: item2index is left out, because it has no documents: no item has a title" in caplog.text
    assert list(make(bare, tokenizer).tasks) == ["seqrec", "itemsearch", "preferenceobtain"]  # intentions are given
    with pytest.raises(ValueError, match="index2item has no documents, and no task is left: no item has a title; add titles"):
        make(bare, tokenizer, tasks={"item2index": 1, "index2item": 1})
    some = dataclasses.replace(small, items=small.items.set_column(1, "title", pa.array(["Lamp", None, "Pen", "Soap"])))
    with pytest.raises(ValueError, match="1 of 4 items have no title: 'q'"):
        make(some, tokenizer)
