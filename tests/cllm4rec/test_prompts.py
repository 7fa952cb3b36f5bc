"""Templates: refused ones, their segments, and ID arithmetic against the tokenizer on the rendered text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments, tokenize_template
from modeling_cllm4rec.core.prompt_assembly import build_input_ids
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

NUM_USERS, NUM_ITEMS = 12, 30


@pytest.fixture(scope="module")
def words() -> CLLM4RecTokenizer:
    """Return a tokenizer whose ids can be read off: chose 2, : 3, says 4, of 5, title 6, user i 8 + i, item j 20 + j."""
    vocabulary = ["[PAD]", "[UNK]", "chose", ":", "says", "of", "title", "."]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    return CLLM4RecTokenizer.from_backbone(backbone, num_users=NUM_USERS, num_items=NUM_ITEMS)


@pytest.fixture(scope="module")
def word_piece() -> CLLM4RecTokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    texts = ["about someone who chose: abba, baab.", "says of it, next: aa bb ab ba"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=80, special_tokens=specials, show_progress=False))
    backbone = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return CLLM4RecTokenizer.from_backbone(backbone, num_users=NUM_USERS, num_items=NUM_ITEMS)


@pytest.fixture(scope="module")
def byte_level(tiny_backbones: dict[str, Path]) -> CLLM4RecTokenizer:
    return CLLM4RecTokenizer.from_backbone(tiny_backbones["gpt2"], num_users=NUM_USERS, num_items=NUM_ITEMS)


def test_templates_are_replaced_by_name_and_the_others_stay() -> None:
    assert Prompts.from_mapping(None) == Prompts.from_mapping({}) == Prompts()
    changed = Prompts.from_mapping({"review": "{user} on {item}:"})
    assert changed.review == "{user} on {item}:"
    assert changed.recommendation == Prompts().recommendation


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"reviews": "{user}{item}"}, r"unknown template 'reviews'; did you mean 'review'\?"),
        ({"xyz": "{user}"}, r"unknown template 'xyz'; known are interactions, item_text, biography"),
        ({"review": "{user}:"}, r"prompts\.review is '\{user\}:'; it must hold each of \{item\}, \{user\} once"),
        ({"review": "{user} {user} {item}"}, r"prompts\.review .* once and no other"),
        ({"anonymous": "{user} {items}"}, r"prompts\.anonymous .* each of \{items\} once and no other"),
        ({"biography": "About {}:"}, r"prompts\.biography .* each of \{user\}"),
        ({"item_text": "{item} {column"}, r"prompts\.item_text is '\{item\} \{column', which is no template"),
        ({"biography": 5}, r"prompts\.biography is 5, which is no template"),
        ({"interactions": "{user} chose: {items}."}, r"prompts\.interactions must end with \{items\}"),
    ],
)
def test_bad_templates_are_refused(templates: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts.from_mapping(templates)


def test_cut_by_hand(words: CLLM4RecTokenizer) -> None:
    assert tokenize_template("{user} chose: {items}", words) == ["user", [2, 3], "items"]
    assert tokenize_template("{user} chose: {items} .", words) == ["user", [2, 3], "items", [7]]
    assert tokenize_template("{user} says of {item}:", words) == ["user", [4, 5], "item", [3]]
    assert tokenize_template("{item} {column}:", words, column="title") == ["item", [6, 3]]


def test_a_beginning_token_comes_first(byte_level: CLLM4RecTokenizer) -> None:
    segments = tokenize_template("{user} chose: {items}", byte_level)
    assert segments[0] == [byte_level.bos_token_id]
    assert segments[1] == "user"


def test_assembled_by_hand(words: CLLM4RecTokenizer) -> None:
    segments = tokenize_template("{user} chose: {items} .", words)
    ids = build_input_ids(segments, user=words.user_token_id(1), items=words.item_token_id(np.array([0, 9])))
    assert ids.tolist() == [9, 2, 3, 20, 29, 7]


def test_an_id_word_in_a_template_is_words(words: CLLM4RecTokenizer) -> None:
    """Only placeholders are IDs; `<user_3>` written into a template is as much text as in a review."""
    (text,) = [segment for segment in tokenize_template("<user_3> {items}", words) if segment != "items"]
    assert max(text) < words.id_offset


def test_recommendation_pieces_are_plain_json(byte_level: CLLM4RecTokenizer) -> None:
    segments = recommendation_segments(Prompts(), byte_level)
    assert json.loads(json.dumps(segments)) == segments
    assert [one for one in segments["known"] if isinstance(one, str)] == ["user", "items"]
    assert [one for one in segments["anonymous"] if isinstance(one, str)] == ["items"]


LETTERS = st.text(alphabet="ab :,.", max_size=8)


@settings(max_examples=60)
@given(parts=st.tuples(LETTERS, LETTERS, LETTERS), user=st.integers(0, 11), item=st.integers(0, 29))
@pytest.mark.parametrize("kind", ["word_piece", "byte_level"])
def test_arithmetic_equals_the_tokenizer(
    kind: str, parts: tuple[str, str, str], user: int, item: int, request: pytest.FixtureRequest
) -> None:
    """Segments encoded once with ID tokens put between them are what the tokenizer makes of the rendered sentence."""
    tokenizer = request.getfixturevalue(kind)
    template = "{user}".join(parts[:2]) + "{item}" + parts[2]
    ids = build_input_ids(
        tokenize_template(template, tokenizer), user=tokenizer.user_token_id(user), item=tokenizer.item_token_id(item)
    ).tolist()
    rendered = template.format(user=f"<user_{user}>", item=f"<item_{item}>")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert ids == begin + tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["word_piece", "byte_level"])
@pytest.mark.parametrize("name", ["interactions", "recommendation", "anonymous"])
def test_default_prompts_with_items_equal_the_tokenizer(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    template = getattr(Prompts(), name)
    items = [5, 0, 29, 11]
    ids = build_input_ids(
        tokenize_template(template, tokenizer), user=tokenizer.user_token_id(7), items=tokenizer.item_token_id(np.array(items))
    )
    rendered = template.format(user="<user_7>", items=" ".join(f"<item_{item}>" for item in items))
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert ids.tolist() == begin + tokenizer(rendered, add_special_tokens=False)["input_ids"]
