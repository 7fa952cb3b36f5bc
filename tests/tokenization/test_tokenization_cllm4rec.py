"""The tokenizer of CLLM4Rec over all kinds of backbone tokenizers, against a second implementation by `add_tokens`."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

REPOSITORY = Path(__file__).parents[2]
MINILM = REPOSITORY.parent / "shared" / "backbone" / "minilm-reviews-lm"
NUM_USERS, NUM_ITEMS = 12, 101  # one and two digits; one, two and three digits

SENTENCES = [
    "The user has interacted with a guitar, two strings and a strap.",
    "User writes the review for item: it sounds great, I would buy it again!",
    "The content of this item is: a 6-string (steel) guitar; price 19.99 <good> _new_",
    "naïve café, über gut; 1234567890 user_1 item_2 USER ITEM",
] * 3
BACKBONES = ["byte_level", "unigram", "llama", "wordpiece"]


# ---- The backbones ----


def byte_level_backbone() -> TokenizersBackend:
    """Byte-level BPE, as GPT-2: no pad token, no special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    end = "<|endoftext|>"
    return TokenizersBackend(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def unigram_backbone() -> TokenizersBackend:
    """SentencePiece-style Unigram, as T5: a space sign before every word, </s> at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return TokenizersBackend(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def llama_backbone() -> TokenizersBackend:
    """SentencePiece-style BPE with byte fallback, as Llama: <s> at the beginning, no pad token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are words of the model, not added tokens
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return TokenizersBackend(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece_backbone() -> TokenizersBackend:
    """WordPiece that lower-cases, as BERT: token types, [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@functools.cache
def backbone(kind: str) -> PreTrainedTokenizerBase:
    if kind == "minilm":
        return AutoTokenizer.from_pretrained(MINILM)
    return globals()[f"{kind}_backbone"]()


@functools.cache
def shared_tokenizer(kind: str) -> CLLM4RecTokenizer:
    """One per kind for tests that only ask it; `make` for those that change it."""
    return make(kind)


def make(kind: str, **kwargs) -> CLLM4RecTokenizer:
    counts = {"num_users": NUM_USERS, "num_items": NUM_ITEMS}
    return CLLM4RecTokenizer.from_backbone(backbone(kind), **{**counts, **kwargs})


@pytest.fixture(params=BACKBONES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(kind) -> CLLM4RecTokenizer:
    return shared_tokenizer(kind)


# ---- The second implementation: every ID word as an added token of the backbone ----


class ByAddedTokens:
    """The backbone with all ID words as added tokens (not normalized, not special), each with and without a space
    before it; their ids are translated to the arithmetic ones."""

    def __init__(self, kind: str) -> None:
        self.tokenizer = copy.deepcopy(backbone(kind))
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        first = len(self.tokenizer)
        words = [f"<user_{i}>" for i in range(NUM_USERS)] + [f"<item_{j}>" for j in range(NUM_ITEMS)]
        for space in ("", " "):
            self.tokenizer.add_tokens([AddedToken(space + word, normalized=False, special=False) for word in words])
        self.id_of = {
            self.tokenizer.convert_tokens_to_ids(space + word): first + position
            for position, word in enumerate(words)
            for space in ("", " ")
        }

    def __call__(self, *args, **kwargs) -> dict[str, list]:
        output = dict(self.tokenizer(*args, **kwargs))
        if output["input_ids"] and isinstance(output["input_ids"][0], list):
            output["input_ids"] = [[self.id_of.get(i, i) for i in row] for row in output["input_ids"]]
        else:
            output["input_ids"] = [self.id_of.get(i, i) for i in output["input_ids"]]
        return output


second_implementation = functools.cache(ByAddedTokens)


@functools.cache
def both_truncating_on(side: str, kind: str) -> tuple[CLLM4RecTokenizer, ByAddedTokens]:
    tokenizer, second = make(kind), ByAddedTokens(kind)
    tokenizer.truncation_side = second.tokenizer.truncation_side = side
    return tokenizer, second


ADVERSARIAL = [
    "<user_03>", "<user_99999999999999999999>", f"<user_{'9' * 5000}>", "<user_12>", "<item_101>", "<USER_1>", "user_1",
    "<user_-1>", "<user_１>", "＜user_1＞", "<user_>", "<user_<user_5>0>", "<<item_2>>", "<user_1", "_1>", "<", ">",
    "\N{GRINNING FACE}", "e\N{COMBINING ACUTE ACCENT}", "\u200d", "\x00", "\x07", "\ue000", "\U0010ffff", "\ufeff", "▁",
    "Ġ", "\n", "\t", "\r\n", "  ", "   ", "<s>", "[SEP]", "<|endoftext|>", "naïve", "guitar", "Strings,", "(", "ﬁ", "İ",
]  # fmt: skip
ID_WORDS = st.one_of(st.integers(0, NUM_USERS - 1).map("<user_{}>".format), st.integers(0, NUM_ITEMS - 1).map("<item_{}>".format))
PIECES = st.one_of(ID_WORDS, st.sampled_from(ADVERSARIAL), st.text(max_size=6).filter(lambda t: t.isprintable()))
TEXTS = st.lists(st.tuples(st.sampled_from(["", " ", " ", "  ", "\n"]), PIECES), max_size=12).map(
    lambda parts: "".join(space + piece for space, piece in parts)
)


def id_words_in(text: str) -> list[tuple[int, int, str]]:
    """(start, end, word) of the ID words in a text, found by going through all of them."""
    words = [f"<user_{i}>" for i in range(NUM_USERS)] + [f"<item_{j}>" for j in range(NUM_ITEMS)]
    found = [(m.start(), m.end(), word) for word in words for m in re.finditer(re.escape(word), text)]
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", BACKBONES)
def test_equals_the_backbone_with_added_tokens(kind, data):
    """On any batch: ids, masks and types equal those of the second implementation, token by token; so do the offsets of
    text tokens, while an ID token's offsets are exactly its ID word."""
    tokenizer = shared_tokenizer(kind)
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    options = {"add_special_tokens": data.draw(st.booleans()), "padding": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        options |= {"truncation": True, "max_length": data.draw(st.integers(4, 12))}
    options |= {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    ours, theirs = dict(tokenizer(texts, **options)), second_implementation(kind)(texts, **options)
    our_offsets, their_offsets = ours.pop("offset_mapping"), theirs.pop("offset_mapping")
    assert ours == theirs
    for text, ids, spans, expected in zip(texts, ours["input_ids"], our_offsets, their_offsets, strict=True):
        for token_id, span, expected_span in zip(ids, spans, expected, strict=True):
            if token_id >= tokenizer.id_offset:
                assert text[slice(*span)] == tokenizer.convert_ids_to_tokens(token_id)
            else:
                assert span == expected_span


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_id_words_are_found_and_nothing_else(kind, text):
    tokenizer = shared_tokenizer(kind)
    output = tokenizer(text, return_offsets_mapping=True)
    words = id_words_in(text)
    found = [
        (start, end, token_id)
        for token_id, (start, end) in zip(output["input_ids"], output["offset_mapping"], strict=True)
        if token_id >= tokenizer.id_offset
    ]
    assert found == [(start, end, tokenizer.convert_tokens_to_ids(word)) for start, end, word in words]
    plain = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert plain == backbone(kind)(text, split_special_tokens=True)["input_ids"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])  # long sides overrun
@given(data=st.data())
@pytest.mark.parametrize("kind", BACKBONES)
def test_pairs_overflow_and_both_sides_of_truncation(kind, data):
    tokenizer, second = both_truncating_on(data.draw(st.sampled_from(["left", "right"])), kind)
    options = {"truncation": data.draw(st.sampled_from(["longest_first", "only_first", "only_second"]))}
    sides = st.lists(PIECES, min_size=12, max_size=20).map(" ".join)  # longer than what is truncated
    first, other = data.draw(sides), data.draw(sides)
    options |= {"max_length": 30, "stride": 2, "return_overflowing_tokens": data.draw(st.booleans())}
    if options["truncation"] != "longest_first":
        kept = other if options["truncation"] == "only_first" else first
        options["max_length"] += len(tokenizer(kept)["input_ids"])
    assert dict(tokenizer(first, other, **options)) == second(first, other, **options)
    batch = [first, "no id word"], [other, "<user_1>"]
    assert dict(tokenizer(*batch, **options)) == second(*batch, **options)


# ---- Hand-made cases ----


def test_ids_by_arithmetic(kind, tokenizer):
    n = len(backbone(kind))
    ids = tokenizer("<user_0> <user_11><item_0> <item_100>", add_special_tokens=False)["input_ids"]
    assert [i for i in ids if i >= n] == [n, n + 11, n + NUM_USERS, n + NUM_USERS + 100]
    assert ids == tokenizer.convert_tokens_to_ids(["<user_0>", "<user_11>", "<item_0>", "<item_100>"])
    assert (tokenizer.id_offset, len(tokenizer)) == (n, n + NUM_USERS + NUM_ITEMS)
    assert tokenizer.vocab_size == backbone(kind).vocab_size


def test_text_around_id_words_keeps_its_tokens(kind, tokenizer):
    def text_tokens(text: str) -> list[int]:
        return backbone(kind)(text, add_special_tokens=False)["input_ids"]

    ids = tokenizer("The user <user_3> writes", add_special_tokens=False)["input_ids"]
    assert ids[: len(text_tokens("The user"))] == text_tokens("The user")
    assert tokenizer.convert_ids_to_tokens(ids[len(text_tokens("The user"))]) == "<user_3>"
    rest = tokenizer.convert_ids_to_tokens(ids[len(text_tokens("The user")) + 1 :])
    assert "".join(rest).replace("▁", "").replace("Ġ", "").replace("##", "") == "writes"


@pytest.mark.parametrize("text", ["user_3", "<user_03>", "<user_12>", "<item_101>", "<USER_3>", "<user_3", "<user_１>"])
def test_what_is_not_an_id_word_is_text(kind, tokenizer, text):
    assert tokenizer(text)["input_ids"] == backbone(kind)(text)["input_ids"]


def test_split_special_tokens_makes_id_words_text(kind):
    tokenizer, text = make(kind), "<user_3> <user_0> <item_100>"
    expected = backbone(kind)(text, split_special_tokens=True)["input_ids"]
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == expected
    assert tokenizer.encode(text, split_special_tokens=True) == expected
    assert "<user_3>" not in tokenizer.tokenize(text, split_special_tokens=True)
    assert "<user_3>" in tokenizer.tokenize(text)
    tokenizer.split_special_tokens = True
    assert tokenizer(text)["input_ids"] == expected


def test_placeholders_are_never_visible(kind, tokenizer, tmp_path):
    vocabulary = tokenizer.get_vocab()
    assert vocabulary == backbone(kind).get_vocab()
    assert vocabulary == tokenizer.vocab
    assert tokenizer.added_tokens_decoder == backbone(kind).added_tokens_decoder
    assert tokenizer.get_added_vocab() == backbone(kind).get_added_vocab()
    assert tokenizer.convert_tokens_to_ids(" <user_0>") == tokenizer.unk_token_id
    padded = make(kind, id_offset=len(backbone(kind)) + 50)  # ids of stand-ins lie in the gap before id_offset
    gap = range(len(backbone(kind)), padded.id_offset)
    assert padded.convert_ids_to_tokens(list(gap)) == [None] * 50
    assert padded.decode(list(gap)) == ""
    assert padded("<user_1>", add_special_tokens=False)["input_ids"] == [padded.id_offset + 1]
    padded.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    backbone(kind).save_pretrained(tmp_path / "backbone")
    assert saved == json.loads((tmp_path / "backbone" / "tokenizer.json").read_text(encoding="utf-8"))


def test_padding_and_tensors(kind):
    tokenizer = make(kind)
    rows = tokenizer(["<user_1> <item_2> guitar strings", "<item_3>"], padding=True)["input_ids"]
    assert rows[1][-1] == tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    output = tokenizer(["<user_1> <item_2> guitar strings", "<item_3>"], padding=True, return_tensors="pt")
    assert output["input_ids"].dtype == torch.int64
    assert output["input_ids"].shape == output["attention_mask"].shape == (2, len(rows[0]))
    assert output["attention_mask"][1].tolist() == sorted(output["attention_mask"][1].tolist())
    assert tokenizer.item_token_id(3) in output["input_ids"][1].tolist()
    assert tokenizer("<item_3>", return_tensors="np")["input_ids"].shape[0] == 1
    assert tokenizer("<item_3>", return_overflowing_tokens=True, return_tensors="np")["input_ids"].shape[0] == 1
    padded = tokenizer.pad({"input_ids": [[tokenizer.item_token_id(3)], [1, 2]]}, padding=True)
    assert padded["attention_mask"] == [[0, 1], [1, 1]]


def test_masks_of_special_tokens_and_token_types():
    tokenizer = shared_tokenizer("wordpiece")
    output = tokenizer("<user_1>", "<item_2>", return_special_tokens_mask=True)
    assert output["token_type_ids"] == [0, 0, 0, 1, 1]
    assert output["special_tokens_mask"] == [1, 0, 1, 0, 1]
    assert tokenizer.get_special_tokens_mask(output["input_ids"], already_has_special_tokens=True) == [1, 0, 1, 0, 1]
    assert "token_type_ids" not in shared_tokenizer("byte_level")("<user_1>")


def test_words_given_apart(kind, tokenizer):
    words = [["<user_1>", "bought", "x<item_2>", "<item_9999>"], ["strings", "<item_100>"]]
    output = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
    expected = second_implementation(kind)(words, is_split_into_words=True, return_offsets_mapping=True)
    assert output["input_ids"] == expected["input_ids"]
    assert output["offset_mapping"] == expected["offset_mapping"]
    assert tokenizer.item_token_id(100) in output["input_ids"][1]
    pairs = [(["<user_1>"], ["of", "<item_7>"])]
    assert dict(tokenizer(pairs, is_split_into_words=True)) == second_implementation(kind)(pairs, is_split_into_words=True)
    one = tokenizer(words[0], is_split_into_words=True)
    assert one["input_ids"] == output["input_ids"][0]
    assert one.word_ids() == output.word_ids(0)


def test_a_pair_in_one_argument(kind, tokenizer):
    pairs = [("<user_1> a", "<item_2>"), ("b", "<item_3> c")]
    assert dict(tokenizer(pairs)) == dict(tokenizer([a for a, _ in pairs], [b for _, b in pairs]))


def test_encodings_speak_of_the_original_text():
    tokenizer, text = shared_tokenizer("byte_level"), "a <user_11> bought <item_100>"
    output = tokenizer(text)
    tokens = output.tokens()
    position = tokens.index("<user_11>")
    assert tokens == tokenizer.tokenize(text)
    assert output.token_to_chars(position) == (2, 11)
    assert output.token_to_chars(0) == (0, 1)
    assert output.char_to_token(5) == position
    assert output[0].ids == output["input_ids"]
    assert len(output[0]) == len(tokens)
    assert output.sequence_ids() == [0] * len(tokens)
    assert pickle.loads(pickle.dumps(output)).tokens() == tokens
    with pytest.raises(AttributeError, match="return_overflowing_tokens=True"):
        _ = output[0].overflowing


def test_encode_and_tokenize(kind, tokenizer):
    text = "guitar <user_1> <item_2>"
    assert tokenizer.encode(text) == tokenizer(text)["input_ids"]
    tokens = tokenizer.tokenize(text)
    assert tokens[-2:] == ["<user_1>", "<item_2>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False)) == tokens
    assert isinstance(tokenizer.convert_ids_to_tokens(tokenizer.id_offset), str)
    assert tokenizer.convert_ids_to_tokens([len(tokenizer)]) == [None]


def test_skip_special_tokens_keeps_id_words(kind, tokenizer):
    ids = tokenizer(["<user_1> guitar", "<item_2>"], padding=True)["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["<user_1> guitar", "<item_2>"]
    assert tokenizer.decode(torch.tensor(ids[1]), skip_special_tokens=True) == "<item_2>"
    tokens = tokenizer.convert_ids_to_tokens(ids[1], skip_special_tokens=True)
    assert "<item_2>" in tokens
    assert not set(tokens) & set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer.item_token_id(5)) == "<item_5>"
    assert tokenizer.decode({"input_ids": ids[1]}, skip_special_tokens=True) == "<item_2>"


def test_decode_returns_the_text(kind, tokenizer):
    text = "the user <user_1> has interacted with <item_2> <item_100> the guitar"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@pytest.mark.parametrize("text", ["a\n<user_1>\n\n<item_2>  <item_3>\tb", "<item_1> b", "a  <item_2>"])
def test_decode_keeps_whitespace_where_the_backbone_does(kind, text):
    tokenizer = shared_tokenizer(kind)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_byte_level_round_trip(text):
    """Exact for any text whose ID words have a space before them, except after line breaks and at the beginning."""
    for start, _, _ in reversed(id_words_in(text)):
        before = text[:start]
        if before and not before[-1].isspace():
            before += " "
        elif before == " " or (before.endswith(" ") and before[-2].isspace() and before[-2] != " "):
            before = before[:-1]
        text = before + text[start:]
    tokenizer = shared_tokenizer("byte_level")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_clean_up_of_spaces():
    tokenizer = shared_tokenizer("unigram")
    ids = tokenizer("<item_1> , guitar", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "<item_1>, guitar"
    assert tokenizer.decode(ids) == "<item_1> , guitar"
    byte_level = shared_tokenizer("byte_level")
    ids = byte_level("<item_1> , guitar")["input_ids"]
    assert byte_level.decode(ids, clean_up_tokenization_spaces=True) == "<item_1> , guitar"


def test_chat_template():
    tokenizer = make("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    chat = [{"role": "user", "content": "I am <user_3>, and <user_99> is not </s>"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    output = tokenizer.apply_chat_template(chat)
    assert output["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.user_token_id(3) in output["input_ids"]
    sanitized = tokenizer.apply_chat_template(chat, sanitize_control_tokens=True)["input_ids"]
    assert tokenizer.user_token_id(3) in sanitized
    assert tokenizer.eos_token_id in output["input_ids"]
    assert tokenizer.eos_token_id not in sanitized


def test_token_ids_of_indices():
    tokenizer = shared_tokenizer("byte_level")
    n = tokenizer.id_offset
    assert tokenizer.user_token_id(11) == n + 11
    assert tokenizer.item_token_id(np.int16(100)) == n + NUM_USERS + 100
    items = tokenizer.item_token_id(np.array([[0, 5]], dtype=np.int8))
    assert (items.dtype, items.tolist()) == (np.int64, [[n + NUM_USERS, n + NUM_USERS + 5]])
    assert tokenizer.user_token_id(np.zeros(0, np.int32)).shape == (0,)
    assert tokenizer.is_user_id(n)
    assert not tokenizer.is_user_id(n - 1)
    ids = [n - 1, n, n + NUM_USERS - 1, n + NUM_USERS, len(tokenizer) - 1, len(tokenizer)]
    assert tokenizer.is_user_id(np.array(ids)).tolist() == [False, True, True, False, False, False]
    assert tokenizer.is_item_id(torch.tensor(ids)).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("index", [-1, NUM_USERS, np.array([0, NUM_USERS]), np.array([-1])])
def test_index_out_of_range(index):
    with pytest.raises(ValueError, match=rf"user_index is (-1|12); it must lie in \[0, {NUM_USERS}\)"):
        shared_tokenizer("byte_level").user_token_id(index)


@pytest.mark.parametrize("index", [1.0, "1", True, [1], np.array([1.0]), np.array([True])])
def test_index_of_wrong_type(index):
    with pytest.raises(TypeError, match="item_index must be an integer or a numpy array of integers"):
        shared_tokenizer("byte_level").item_token_id(index)


# ---- from_backbone ----


def test_counts_from_external_ids():
    ids = {"users": np.array(["u 1", "user_1", "\N{GRINNING FACE}"]), "catalogue": [7, 8]}
    tokenizer = CLLM4RecTokenizer.from_backbone(backbone("wordpiece"), **ids)
    assert (tokenizer.num_users, tokenizer.num_items) == (3, 2)
    none = CLLM4RecTokenizer.from_backbone(backbone("wordpiece"), num_users=0, catalogue=[7])
    assert none("<user_0>")["input_ids"] == backbone("wordpiece")("<user_0>")["input_ids"]
    assert none("<item_0>", add_special_tokens=False)["input_ids"] == [none.id_offset]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 1}, "neither num_users nor users given; give one of them"),
        ({"num_items": 1, "num_users": 1, "users": ["a"]}, "both num_users and users given"),
        ({"num_users": 1}, "neither num_items nor catalogue given"),
        ({"num_users": 1, "num_items": 1, "catalogue": [1]}, "both num_items and catalogue given"),
        ({"num_users": -1, "num_items": 1}, "num_users is -1; it must be an integer, 0 or more"),
        ({"num_users": 1, "num_items": 2.0}, "num_items is 2.0; it must be an integer"),
        ({"num_users": True, "num_items": 2}, "num_users is True; it must be an integer"),
        ({"users": "A3", "num_items": 2}, "users is a str; it must be a list or array of external ids"),
        ({"num_users": 1, "catalogue": iter([1])}, "catalogue is a list_iterator; it must be a list"),
        ({"num_users": 1, "num_items": 1, "id_offset": 10}, "id_offset is 10, but the backbone's tokenizer has 340"),
        ({"num_users": 1, "num_items": 1, "id_offset": -1}, "id_offset is -1; it must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CLLM4RecTokenizer.from_backbone(backbone("byte_level"), **arguments)


def test_pad_token(kind):
    tokenizer = make(kind)
    assert tokenizer.pad_token == (backbone(kind).pad_token or backbone(kind).eos_token)
    assert make("llama", pad_token="<unk>").pad_token == "<unk>"
    source = copy.deepcopy(backbone("byte_level"))
    source.eos_token = None
    with pytest.raises(ValueError, match=re.escape("name one of its tokens, as from_backbone(..., pad_token=")):
        CLLM4RecTokenizer.from_backbone(source, num_users=1, num_items=1)


def test_a_new_pad_token_comes_before_the_id_tokens(tmp_path):
    tokenizer = make("byte_level", pad_token="[PAD]")
    assert tokenizer.pad_token_id == len(backbone("byte_level"))
    assert tokenizer.id_offset == tokenizer.pad_token_id + 1
    tokenizer.save_pretrained(tmp_path)
    loaded = CLLM4RecTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.id_offset) == (tokenizer.pad_token_id, tokenizer.id_offset)


def test_settings_of_the_backbone_are_kept():
    source = copy.deepcopy(backbone("wordpiece"))
    source.padding_side, source.model_max_length, source.chat_template = "left", 77, "{{ messages[0]['content'] }}"
    source(["a", "b c"], padding=True, truncation=True, max_length=2)  # leaves its traces in the backend
    tokenizer = CLLM4RecTokenizer.from_backbone(source, num_users=1, num_items=1, truncation_side="left")
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert tokenizer.model_max_length == 77
    assert tokenizer.chat_template == source.chat_template
    assert tokenizer.special_tokens_map == source.special_tokens_map
    assert tokenizer.model_input_names == source.model_input_names
    assert tokenizer.backend_tokenizer.truncation is None
    assert len(source) == len(backbone("wordpiece"))


def test_backbones_that_cannot_be():
    with pytest.raises(ValueError, match="backbone is a CLLM4RecTokenizer; it must be a fast tokenizer"):
        CLLM4RecTokenizer.from_backbone(shared_tokenizer("byte_level"), num_users=1, num_items=1)
    for word in ("<user_0>", "<item_77>"):
        source = copy.deepcopy(backbone("byte_level"))
        source.add_tokens([word])
        with pytest.raises(ValueError, match=f"already has the token '{word}'"):
            CLLM4RecTokenizer.from_backbone(source, num_users=1, num_items=1)
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    with pytest.raises(ValueError, match=re.escape("have gaps (largest id 2)")):
        CLLM4RecTokenizer(tokenizer_object=gaps, num_users=1, num_items=1)


def test_no_new_tokens():
    tokenizer = make("byte_level")
    for add in (lambda: tokenizer.add_tokens(["brand new"]), lambda: tokenizer.add_tokens(["<user_999>"])):
        with pytest.raises(ValueError, match="the ids from 340 on belong to users and items"):
            add()
    with pytest.raises(ValueError, match=re.escape("cannot add '[PAD]'")):
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.add_tokens(["<user_0>", "<item_5>"]) == 0
    assert tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"}) == 0
    assert len(tokenizer) == 340 + NUM_USERS + NUM_ITEMS
    with pytest.raises(NotImplementedError, match="use from_backbone"):
        tokenizer.train_new_from_iterator([["a"]], 300)


# ---- Saving, loading, copying ----


def test_save_and_load(kind, tmp_path):
    tokenizer = make(kind, id_offset=len(backbone(kind)) + 7, padding_side="left")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    text = "the user <user_1> (<item_100>) <user_99> guitar"
    tokenizer([text, "a"], padding=True, truncation=True, max_length=5)  # what a call asked for is not saved
    tokenizer.save_pretrained(tmp_path / "saved")
    moved = shutil.move(tmp_path / "saved", tmp_path / "moved folder")
    loaded = CLLM4RecTokenizer.from_pretrained(moved)
    assert loaded(text).data == tokenizer(text).data
    assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert (loaded.num_users, loaded.num_items, loaded.id_offset) == (NUM_USERS, NUM_ITEMS, tokenizer.id_offset)
    assert (loaded.padding_side, loaded.chat_template) == ("left", tokenizer.chat_template)
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    state = json.loads((moved / "tokenizer.json").read_text(encoding="utf-8"))
    assert (state["truncation"], state["padding"]) == (None, None)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenization_cllm4rec.py"):
        assert (tmp_path / "again" / name).read_bytes() == (moved / name).read_bytes()
    assert str(tmp_path) not in (moved / "tokenizer_config.json").read_text(encoding="utf-8")


def test_the_backbones_own_file_byte_for_byte(kind, tmp_path):
    backbone(kind).save_pretrained(tmp_path / "backbone")
    own = tmp_path / "backbone" / "tokenizer.json"
    state = json.loads(own.read_text(encoding="utf-8"))
    own.write_text(json.dumps(state, indent=7), encoding="utf-8")  # as no library writes it
    before = own.read_bytes()
    tokenizer = CLLM4RecTokenizer.from_backbone(tmp_path / "backbone", num_users=1, num_items=1)
    tokenizer(["<user_0> a", "b"], padding=True, truncation=True, max_length=3)
    assert own.read_bytes() == before
    shutil.rmtree(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == before
    CLLM4RecTokenizer.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "saved")  # onto itself
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == before
    tokenizer.save_pretrained(tmp_path / "saved", filename_prefix="x")
    assert (tmp_path / "saved" / "x-tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "tokenizer_class", "model_type"),
    [
        ("byte_level", "GPT2Tokenizer", "gpt2"),
        ("byte_level", "Qwen2Tokenizer", "qwen2"),
        ("llama", "LlamaTokenizer", "llama"),
        ("wordpiece", "BertTokenizer", "bert"),
    ],
)
def test_tokenizer_classes_that_change_what_the_file_says(kind, tokenizer_class, model_type, tmp_path):
    """Some classes of transformers rebuild their backend: text gets the ids of `AutoTokenizer`, after saving too."""
    backbone(kind).save_pretrained(tmp_path / "backbone")
    config = json.loads((tmp_path / "backbone" / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = tokenizer_class
    (tmp_path / "backbone" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "backbone" / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    source = AutoTokenizer.from_pretrained(tmp_path / "backbone")
    assert type(source).__name__ == tokenizer_class
    tokenizer = CLLM4RecTokenizer.from_backbone(tmp_path / "backbone", num_users=NUM_USERS, num_items=NUM_ITEMS)
    tokenizer.save_pretrained(tmp_path / "saved")
    texts = [*SENTENCES[:4], "<user_99> e\N{COMBINING ACUTE ACCENT} 2019\n\n x"]
    for one in (tokenizer, CLLM4RecTokenizer.from_pretrained(tmp_path / "saved")):
        assert one(texts).data == source(texts).data
        text = "the user <user_1> has <item_2>"
        assert one.decode(one(text)["input_ids"], skip_special_tokens=True) == text


def test_a_changed_backend_is_saved_as_it_is(tmp_path):
    backbone("wordpiece").save_pretrained(tmp_path / "backbone")
    tokenizer = CLLM4RecTokenizer.from_backbone(tmp_path / "backbone", num_users=1, num_items=1)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = CLLM4RecTokenizer.from_pretrained(tmp_path / "saved")
    text = "USER guitar <user_0>"
    assert loaded.tokenize(text) == tokenizer.tokenize(text) != backbone("wordpiece").tokenize(text)


def test_auto_map_and_file(tmp_path):
    make("byte_level").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {"AutoTokenizer": ["tokenization_cllm4rec.CLLM4RecTokenizer", None]}
    assert config["tokenizer_class"] == "CLLM4RecTokenizer"
    source = REPOSITORY / "tokenization" / "tokenization_cllm4rec.py"
    assert (tmp_path / "tokenization_cllm4rec.py").read_bytes() == source.read_bytes()


def test_folders_that_cannot_be_loaded(tmp_path):
    backbone("byte_level").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_users is missing; give a number, or make the tokenizer"):
        CLLM4RecTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        CLLM4RecTokenizer.from_pretrained(tmp_path, num_users=1, num_items=1)


def test_pickle_and_deepcopy(kind, tokenizer):
    text = "the <user_1> bought <item_100>"
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert other(text).data == tokenizer(text).data
        assert other.decode(other(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        assert len(other) == len(tokenizer)


def test_datasets_map_in_two_processes():
    tokenizer = shared_tokenizer("wordpiece")
    texts = datasets.Dataset.from_dict({"text": ["<user_1> guitar", "<item_2>", "strings", "<item_3> a"]})
    rows = texts.map(lambda batch: tokenizer(batch["text"]), batched=True, num_proc=2)["input_ids"]
    assert list(rows) == tokenizer(list(texts["text"]))["input_ids"]


IN_A_FRESH_PROCESS = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tokenization", "modeling_cllm4rec"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, NotInstalled())
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("moved", trust_remote_code=True)
tokenizer.save_pretrained("again")
text = "the user <user_11> has <item_100> (<item_101>)"
print(json.dumps([type(tokenizer).__module__.split(".")[0], tokenizer(text)["input_ids"], len(tokenizer)]))
"""


def test_a_fresh_process_without_the_package(tmp_path):
    tokenizer = make("llama")
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = "the user <user_11> has <item_100> (<item_101>)"
    expected = ["transformers_modules", tokenizer(text)["input_ids"], len(tokenizer)]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenization_cllm4rec.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "moved" / name).read_bytes()


# ---- Ten million ID tokens ----


def test_size_does_not_depend_on_the_number_of_ids(tmp_path):
    sizes = {}
    for number in (10, 5_000_000):
        tokenizer = make("byte_level", num_users=number, num_items=number)
        tokenizer.save_pretrained(tmp_path / str(number))
        sizes[number] = {path.name: path.stat().st_size for path in (tmp_path / str(number)).iterdir()}
        assert len(tokenizer.get_vocab()) == 340
        assert len(pickle.dumps(tokenizer)) < 100_000
    more_digits = 2 * (len("5000000") - len("10"))  # num_users and num_items
    sizes[10]["tokenizer_config.json"] += more_digits
    assert sizes[10] == sizes[5_000_000]


def test_the_last_of_ten_million():
    tokenizer = make("wordpiece", num_users=5_000_000, num_items=5_000_000)
    n = tokenizer.id_offset
    ids = tokenizer("<user_4999999> <item_4999999> <user_1234567>", add_special_tokens=False)["input_ids"]
    assert ids == [n + 4_999_999, n + 9_999_999, n + 1_234_567]
    assert tokenizer.decode(ids) == "<user_4999999> <item_4999999> <user_1234567>"


# ---- A real backbone ----


@pytest.mark.skipif(not MINILM.is_dir(), reason="the MiniLM decoder is not next to the checkout")
def test_on_the_minilm_decoder(tmp_path):
    counts = {"num_users": NUM_USERS, "num_items": NUM_ITEMS}
    tokenizer = CLLM4RecTokenizer.from_backbone(MINILM, **counts)
    assert tokenizer.id_offset == 30_522
    texts = ["The <user_11> bought <item_100>, Naïve CAFÉ <user_12>", "<user_1> writes the review for <item_2>:"]
    assert dict(tokenizer(texts, padding=True)) == second_implementation("minilm")(texts, padding=True)
    ids = tokenizer(texts[1])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<user_1> writes the review for <item_2> :"
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (MINILM / "tokenizer.json").read_bytes()
    assert CLLM4RecTokenizer.from_pretrained(tmp_path)(texts).data == tokenizer(texts).data


# ---- The package ----


def test_the_package_imports_nothing_heavy():
    code = "import sys, tokenization; print('torch' in sys.modules, dir(tokenization).count('CLLM4RecTokenizer'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "1"], done.stderr
    import tokenization

    assert tokenization.__all__ == ["CLLM4RecTokenizer"]
    assert tokenization.CLLM4RecTokenizer is CLLM4RecTokenizer
    with pytest.raises(AttributeError, match="has no attribute 'Tokenizer'"):
        _ = tokenization.Tokenizer
