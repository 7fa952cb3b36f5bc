"""Intentions and preferences: what the rules take from texts, what a writer writes, and that nothing held out gets in."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec import intention_writer
from modeling_cllm4rec.lcrec.intention_writer import write_intentions
from modeling_cllm4rec.lcrec.intentions import (
    RECENT_ITEMS,
    RULES,
    Intentions,
    extract_intentions,
    parts_of_history,
    training_histories,
    words_of,
)

ITEMS = {
    "item_id": ["p", "q", "r", "s"],
    "title": ["Sleek red lamp", "Sturdy red lantern", "Sleek herbal tea", "4711"],
    "brand": ["Plainform", "Red Barn", None, ""],
    "categories": [["Home", "Lamps"], ["Home", "Lamps"], ["Pantry", "Tea"], None],
    "description": ["A bright Plainform lamp for reading.", "It shines bright.", "", None],
}
REVIEWS = [
    "Plainform again. The bright lamp helps with reading every night!",
    None,
    "A calming herbal cup.",
    "Tea that calms: herbal, calming.",
]


@pytest.fixture
def small() -> RecommendationData:
    """Ann has p, q, r and (test) s; Ben has r and (validation) p; Cat has r, then q."""
    return RecommendationData(
        users=pa.table({"user_id": ["ann", "ben", "cat"]}),
        items=pa.table(ITEMS),
        interactions=pa.table(
            {
                "user_index": pa.array([0, 0, 0, 0, 1, 1, 2, 2], pa.int32()),
                "item_index": pa.array([0, 1, 2, 3, 2, 0, 2, 1], pa.int32()),
                "split": ["train", "train", "train", "test", "train", "validation", "train", "train"],
                "review": pa.array([*REVIEWS[:3], None, REVIEWS[3], None, None, None], pa.large_string()),
            }
        ),
        info={},
        folder=Path("small"),
    )


def test_words_of() -> None:
    found = words_of("I'd like an Old-Time SPP6 lamp, 3x brighter; très joli!")
    assert found == ["i'd", "old-time", "lamp", "brighter", "très", "joli"]
    assert words_of("The of 12 it.") == []


def test_rules_by_hand(small: RecommendationData) -> None:
    """Words that two items share, without brands: lamp items share 'bright' and 'home', p and r 'sleek', q none of 'red'."""
    made = extract_intentions(small)
    assert made.source == RULES
    lamp, lantern, tea, number = made.queries
    assert all(set(words_of(text)) <= {"sleek", "bright", "home", "lamps", "need", "looking", "mind"} for text in lamp[:2])
    assert "sleek" in lamp[0] and lamp[0].endswith("lamps")
    assert lamp[2] == "The bright lamp helps with reading every night!"  # the review; its first sentence names the brand
    assert "red" not in " ".join(lantern[:2])  # its brand is Red Barn, so that the word is known of one item alone
    assert lantern[2:] == []  # "It shines bright." has three words
    assert "tea" in tea[0]
    assert number == ["4711"]  # no word at all: the title
    (ann,), ben, (cat,) = made.preferences  # of two items and of one, so that there is the general preference only
    assert ben == []  # one training item has no history before it
    assert "lamps" in ann and "tea" not in ann  # r, the last one, is the target, not part of the history
    assert "tea" in cat and "lamps" not in cat
    (by_user, by_item), *others = made.user_queries
    assert others == [[], []]  # Ben has one training item, and Cat no review of q
    assert "calming, cup, herbal" in by_user  # the words of Ann's review of r, in no sentence with I or my
    assert "tea" in by_item and {"calming", "cup", "herbal"} & set(words_of(by_item))


def test_the_intention_by_user_is_a_sentence_with_i_or_my(small: RecommendationData) -> None:
    rows = small.interactions.to_pylist()
    rows[2]["review"] = "A calming herbal cup. I wanted a calm evening with sleek things. Sleek it is."
    data = dataclasses.replace(small, interactions=pa.Table.from_pylist(rows, small.interactions.schema))
    by_user, by_item = extract_intentions(data).user_queries[0]
    assert by_user == "I wanted a calm evening with sleek things."
    assert "sleek" in by_item and "tea" in by_item  # the word that the review and the item share


def test_preferences_are_general_long_term_and_short_term(data: RecommendationData) -> None:
    made, histories = extract_intentions(data, max_history=20), training_histories(data)
    for texts, history in zip(made.preferences, histories, strict=True):
        assert len(texts) <= (3 if len(history) > RECENT_ITEMS + 1 else 1)
    user = next(user for user, history in enumerate(histories) if len(history) > RECENT_ITEMS + 1)
    general, lasting, recent = made.preferences[user]
    assert lasting.startswith(("For a long time", "From early on")) and recent.startswith(("Lately", "At present"))
    assert not general.startswith(("For a long time", "From early on", "Lately", "At present"))
    parts = parts_of_history(histories[user], 20)
    kinds = [{name.lower() for item in part for name in data.items["categories"][item].as_py()} for part in parts]
    assert any(kind in lasting for kind in kinds[1]) and any(kind in recent for kind in kinds[2])


def test_the_same_data_and_seed_give_the_same_texts(data: RecommendationData) -> None:
    first = extract_intentions(data, seed=3)
    assert extract_intentions(data, seed=3) == first
    other = extract_intentions(data, seed=4)
    assert sum(ours != theirs for ours, theirs in zip(first.queries, other.queries, strict=True)) > data.num_items / 2
    assert all(1 <= len(texts) <= 3 and all(texts) for texts in first.queries)
    assert len(first.preferences) == data.num_users


def test_the_order_of_hashes_does_not_matter(data_folder: Path) -> None:
    program = (
        "import sys, hashlib; from modeling_cllm4rec.corpora.data_folder import RecommendationData;"
        "from modeling_cllm4rec.lcrec.intentions import extract_intentions;"
        "made = extract_intentions(RecommendationData.load(sys.argv[1]));"
        "print(hashlib.sha256(repr(made).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(data_folder)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_preferences_read_the_last_items_only(data: RecommendationData) -> None:
    histories = data.histories("train")
    long = int(np.diff(histories.indptr).argmax())
    one, many = (extract_intentions(data, max_history=number).preferences[long][0] for number in (1, 50))
    read = histories.items[histories.indptr[long + 1] - 2]
    kinds = {name.lower() for name in data.items["categories"][int(read)].as_py()}
    assert one != many
    assert any(kind in one for kind in kinds)


def test_brands_are_left_out_of_keywords(data: RecommendationData) -> None:
    made = extract_intentions(data)
    for brand, texts in zip(data.items["brand"].to_pylist(), made.queries, strict=True):
        assert not set(words_of(brand)) & set(words_of(texts[0]))


def held_out_changed(data: RecommendationData) -> RecommendationData:
    """Other validation and test pairs: each held-out pair gets another item that its user has nowhere."""
    rows = data.interactions.to_pylist()
    known = {(row["user_index"], row["item_index"]) for row in rows}
    for row in rows:
        if row["split"] != "train":
            free = next(j for j in range(data.num_items) if (row["user_index"], j) not in known)
            row["item_index"] = free
            known.add((row["user_index"], free))
    return dataclasses.replace(data, interactions=pa.Table.from_pylist(rows, data.interactions.schema))


def test_nothing_of_held_out_pairs_gets_in(data: RecommendationData) -> None:
    other = held_out_changed(data)
    assert other.interactions != data.interactions
    assert extract_intentions(other) == extract_intentions(data)
    without = data.interactions.filter(pa.compute.equal(data.interactions["split"], "train"))
    assert extract_intentions(dataclasses.replace(data, interactions=without)) == extract_intentions(data)


def test_items_without_a_title(small: RecommendationData) -> None:
    items = small.items.set_column(1, "title", pa.array(["Lamp", None, "Tea", "Pen"]))
    with pytest.raises(ValueError, match="1 of 4 items have no title: 'q'"):
        extract_intentions(dataclasses.replace(small, items=items))


def test_titles_alone_are_enough(small: RecommendationData) -> None:
    bare = dataclasses.replace(
        small, items=small.items.select(["item_id", "title"]), interactions=small.interactions.drop_columns(["review"])
    )
    made = extract_intentions(bare)
    assert all("sleek" in text for text in (made.queries[0][0], made.queries[2][0]))
    assert made.preferences[0]


# ---- Writers ----


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: dict[str, Path]) -> Path:
    """Save a tiny GPT-2 with random weights, a context of 512, and sampling settings that must not matter."""
    from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, eos_token_id=0, bos_token_id=0)
    folder = tmp_path_factory.mktemp("writer")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(data: RecommendationData, writer: Path, cache: Path, **changes: Any) -> Intentions:
    return write_intentions(data, str(writer), cache=cache, progress=False, **{"max_new_tokens": 6, **changes})


def forbid_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(intention_writer, "_generate", no)


def test_a_writer_writes_greedily_and_once(
    small: RecommendationData, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "new" / "intentions.jsonl"
    made = write(small, writer, cache)
    assert [len(texts) for texts in made.queries] == [1 if texts[0] else 3 for texts in made.queries]
    assert made.source.startswith(f"written by {writer.name} (8 prompts; ")
    assert made.preferences[1] == [] and made.preferences[0] and len(made.user_queries[0]) == 2
    assert len(cache.read_text().splitlines()) == 8  # four items, ann and cat, and two of ann's review of r
    assert write(small, writer, tmp_path / "other.jsonl", batch_size=1) == made  # batches, padding and luck do not matter
    forbid_writing(monkeypatch)
    assert write(small, writer, cache) == made
    with pytest.raises(AssertionError, match="written again"):
        write(small, writer, cache, max_new_tokens=5)


def test_a_killed_run_goes_on_where_it_was(
    small: RecommendationData, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write(small, writer, tmp_path / "whole.jsonl")
    cache, batches = tmp_path / "intentions.jsonl", []
    generate = intention_writer._generate

    def killed(model: Any, tokenizer: Any, rows: list[list[int]], how: Any) -> list[str]:
        batches.append(len(rows))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return generate(model, tokenizer, rows, how)

    monkeypatch.setattr(intention_writer, "_generate", killed)
    with pytest.raises(KeyboardInterrupt):
        write(small, writer, cache, batch_size=2)
    assert len(cache.read_text().splitlines()) == 4  # two batches of two
    with cache.open("a") as file:
        file.write('{"key": "half a li')
    batches.extend([0] * 5)
    with caplog.at_level(logging.WARNING):
        assert write(small, writer, cache, batch_size=2) == whole
    assert batches[8:] == [2, 2]
    assert "the last line" in caplog.text and "was cut off" in caplog.text
    assert all(json.loads(line)["key"] for line in cache.read_text().splitlines())


@pytest.mark.parametrize(("content", "message"), [("user,item\n", "no file of written"), ('{"key": "a"}\n', "is damaged")])
def test_some_other_cache_is_not_touched(
    content: str, message: str, small: RecommendationData, writer: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.jsonl"
    cache.write_text(content)
    with pytest.raises(ValueError, match=message):
        write(small, writer, cache)
    assert cache.read_text() == content


def test_a_cache_cut_within_its_first_line_starts_again(small: RecommendationData, writer: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    cache.write_text('{"ke')
    assert write(small, writer, cache).source
    assert len(cache.read_text().splitlines()) == 8


def test_where_a_writer_writes_nothing_the_rules_do(
    small: RecommendationData, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intention_writer, "_generate", lambda model, tokenizer, rows, how: [""] * len(rows))
    with caplog.at_level(logging.WARNING):
        made = write(small, writer, tmp_path / "cache.jsonl")
    assert dataclasses.replace(made, source=RULES) == extract_intentions(small)
    assert made.source.endswith("(8 prompts; 8 without an answer)")
    assert "wrote nothing for 8 of 8 prompts: texts that are missing come from the rules" in caplog.text


def test_prompts_hold_training_texts_only(data: RecommendationData) -> None:
    def prompts(one: RecommendationData) -> list[str]:
        users = [*intention_writer._user_prompts(one, 20), *intention_writer._review_prompts(one)]
        return [*intention_writer._item_prompts(one), *(prompt for prompts in users for prompt in prompts)]

    assert prompts(held_out_changed(data)) == prompts(data)
    first = intention_writer._item_prompts(data)[0]
    assert data.items["title"][0].as_py() in first and data.items["description"][0].as_py() in first


def test_prompts_by_hand(small: RecommendationData) -> None:
    lamp, _, tea, number = intention_writer._item_prompts(small)
    assert lamp.startswith(f"Product: Sleek red lamp\nAbout it: {ITEMS['description'][0]}\nA buyer: {REVIEWS[0]}\nIn one")
    assert tea.startswith(f"Product: Sleek herbal tea\nA buyer: {REVIEWS[2]}\nA buyer: {REVIEWS[3]}\nIn one")
    assert number.startswith("Product: 4711\nIn one")
    (ann,), ben, (cat,) = intention_writer._user_prompts(small, max_history=20)
    assert "after another: Sleek red lamp; Sturdy red lantern.\n" in ann
    assert ben == []
    assert "after another: Sleek herbal tea.\n" in cat
    assert "after another: Sturdy red lantern.\n" in intention_writer._user_prompts(small, max_history=1)[0][0]
    (by_user, by_item), *others = intention_writer._review_prompts(small)
    assert others == [[], []]
    assert by_user.startswith(f"Product: Sleek herbal tea\nA buyer: {REVIEWS[2]}\nIn one short sentence, what this buyer wants, ")
    assert by_item.startswith(f"Product: Sleek herbal tea\nA buyer: {REVIEWS[2]}\nIn one short sentence, how this product is")


def test_a_prompt_beyond_the_context(small: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    items = small.items.set_column(1, "title", pa.array(["lamp " * 200, "Lantern", "Tea", "Pen"]))
    with pytest.raises(
        ValueError, match="the longest prompt has .* tokens and max_new_tokens is 6, but .* has a context of 128: use a writer"
    ):
        write(dataclasses.replace(small, items=items), tiny_backbones["gpt2"], tmp_path / "cache.jsonl")


@pytest.mark.parametrize("name", ["batch_size", "max_new_tokens"])
def test_sizes_must_be_positive(name: str, small: RecommendationData, writer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be 1 or more"):
        write(small, writer, tmp_path / "cache.jsonl", **{name: 0})


def test_a_chat_template_is_used_and_special_tokens_in_texts_are_not(tiny_backbones: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    plain = intention_writer._tokens(["a<|endoftext|>b"], tokenizer)[0]
    assert plain == [tokenizer.bos_token_id, *tokenizer("a b", add_special_tokens=False)["input_ids"]]
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m['content'] }} A:{% endfor %}"
    prompt = intention_writer._tokens(["a<|endoftext|>b"], tokenizer)[0]
    assert prompt == tokenizer("Q: a b A:", add_special_tokens=False)["input_ids"]
