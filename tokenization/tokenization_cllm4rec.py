"""The tokenizer of CLLM4Rec: a backbone's fast tokenizer, and a token for every user and item.

With N = `id_offset` text ids, I users and J items, `<user_i>` has token id N + i and `<item_j>` has N + I + j (section
3.1 of arXiv 2311.01343 adds these tokens to the vocabulary). The ids come from arithmetic, not from a table, so ten
million users and items cost as much to load and save as ten.

A text is encoded in three steps. Each ID word in range is replaced by a *stand-in* of the same length, the first ID word
with as many digits (`<item_7342>` by `<item_1000>`). The Rust backend, which has one stand-in for each number of digits as an
added token, encodes the batch. Then the ids of the stand-ins are replaced. This is exact for any text:

- A stand-in is itself an ID word in range, so each stand-in in the text comes from an ID word: no string of a user's
  text can be confused with it.
- Lengths do not change, so the backend's offsets hold in the original text, and the ID word is read from there:
  truncation from either side, overflow, pairs and pre-tokenized words need no book-keeping.

Stand-ins are kept in memory only; `tokenizer.json` is the backbone's own file. This file is copied into every
saved folder and imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence, Sized
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

from tokenizers import AddedToken
from tokenizers import Encoding as BackendEncoding
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, TokenizersBackend
from transformers.utils.hub import cached_file

if TYPE_CHECKING:
    import numpy as np

TOKENIZER_FILE = "tokenizer.json"

ID_WORD = re.compile(r"<(user|item)_(0|[1-9][0-9]{0,17})>")
"""`<user_3>`, `<item_12>`: lower case, ASCII digits, no leading zeros. The range of the index is checked elsewhere."""

IdWord = tuple[str, tuple[int, int]]
"""An ID word in a text and the characters it covers, [start, end)."""


class CLLM4RecTokenizer(TokenizersBackend):
    """A backbone's fast tokenizer with user and item ID tokens.

    `from_backbone` makes one, and `from_pretrained` loads a saved one (without this package installed,
    `AutoTokenizer.from_pretrained(folder, trust_remote_code=True)` does). It is used as every tokenizer of transformers,
    with these rules for ID words:

    - `<user_3>` and `<item_12>` in a text are ID tokens when in range. Anything else is text: `user_3`, `<USER_3>`,
      `<user_03>`, an index out of range. With `split_special_tokens=True` (at the call, or as attribute) no ID word
      and no special token is recognized: encode texts of users, such as reviews, this way.
    - One space before an ID word belongs to it, as it does to a word in byte-level vocabularies, so a list of items
      costs one token per item. `decode` writes that space, but not at the beginning or after a line break or tab.
    - ID tokens are not special tokens: `skip_special_tokens=True` keeps them.
    - `len(tokenizer)` is N + I + J. `vocab_size`, `get_vocab()` and `vocab` are about the backbone's text tokens only
      (a dictionary of all ID words could have millions of entries).
    - New tokens cannot be added: they would take the ids of users. Add them to the backbone's tokenizer before.

    Args:
        num_users: number I of users, 0 or more.
        num_items: number J of items, 0 or more.
        id_offset: number N of text ids, at least the text vocabulary; default: exactly that. A model whose embedding is
            padded needs its own N, `max(len(backbone tokenizer), vocab_size of its config)`.
        tokenizer_file: path to the backbone's `tokenizer.json`.
        kwargs: as every fast tokenizer of transformers.

    Raises:
        ValueError: a count or the offset is missing or out of range, or the backbone's vocabulary already has ID words.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "bought": 2}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> backbone = TokenizersBackend(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
        >>> tokenizer = CLLM4RecTokenizer.from_backbone(backbone, num_users=2, catalogue=["B00021", "B00027", "B00031"])
        >>> tokenizer("<user_1> bought <item_0> <item_2> <item_3>").input_ids[:4], len(tokenizer)
        ([4, 2, 5, 7], 8)
        >>> tokenizer.decode([4, 2, 5, 7])
        '<user_1> bought <item_0> <item_2>'
    """

    vocab_files_names = {"tokenizer_file": TOKENIZER_FILE}
    _tokenizer: Any  # the Rust backend
    _auto_class = "AutoTokenizer"  # so that save_pretrained always writes auto_map and copies this file

    def __init__(
        self,
        *args: Any,
        num_users: int | None = None,
        num_items: int | None = None,
        id_offset: int | None = None,
        tokenizer_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_users = _count("num_users", num_users)
        self.num_items = _count("num_items", num_items)
        self._ranges: dict[str, tuple[int, int]] = {}  # kind -> (first token id, number); empty while loading
        self._stand_ins: dict[tuple[str, int], str] = {}  # (kind, number of digits) -> ID word
        self._stand_in_tokens: frozenset[str] = frozenset()
        self._stand_in_ids: frozenset[int] = frozenset()
        self._special_ids: frozenset[int] | None = None
        self._backbone_json = Path(tokenizer_file).read_bytes() if tokenizer_file is not None else None
        counts = {"num_users": self.num_users, "num_items": self.num_items, "id_offset": id_offset}
        super().__init__(*args, tokenizer_file=tokenizer_file, **counts, **kwargs)

        self._text_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.id_offset = self._text_size if id_offset is None else _count("id_offset", id_offset)
        if self.id_offset < self._text_size:
            raise ValueError(
                f"id_offset is {self.id_offset}, but the backbone's tokenizer has {self._text_size} text ids: ID "
                f"tokens would collide with words; give at least {self._text_size}, or leave it out"
            )
        self.init_kwargs["id_offset"] = self.id_offset
        self._ranges = {
            "user": (self.id_offset, self.num_users),
            "item": (self.id_offset + self.num_users, self.num_items),
        }
        self._add_stand_ins()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedTokenizerBase,
        *,
        num_users: int | None = None,
        num_items: int | None = None,
        users: Sized | None = None,
        catalogue: Sized | None = None,
        id_offset: int | None = None,
        **kwargs: Any,
    ) -> CLLM4RecTokenizer:
        """Add ID tokens to a copy of a backbone's tokenizer.

        Args:
            backbone: name on the Hub, folder, or a loaded fast tokenizer.
            num_users, users: the number of users, or their external ids (anything with a length): one of the two.
            num_items, catalogue: the same for items.
            id_offset: first user's token id; default: the size of the backbone's tokenizer. Give the model's
                `id_offset` where its embedding is larger than its tokenizer.
            kwargs: passed to `AutoTokenizer.from_pretrained` with a name or folder; with a loaded tokenizer, settings
                that override its own, such as `padding_side="left"`.

        Returns:
            A tokenizer with the backbone's settings. A backbone without padding token pads with its end-of-text token.

        Raises:
            ValueError: both or none of a pair of arguments, a count or offset out of range, a tokenizer that is not a
                fast one or already has ID tokens, no token to pad with.
        """
        user_count = _count_from("num_users", num_users, "users", users)
        item_count = _count_from("num_items", num_items, "catalogue", catalogue)
        if isinstance(backbone, PreTrainedTokenizerBase):
            source, settings = backbone, kwargs
        else:
            source, settings = AutoTokenizer.from_pretrained(backbone, **kwargs), {}
        if not isinstance(source, TokenizersBackend) or isinstance(source, CLLM4RecTokenizer):
            raise ValueError(
                f"backbone is a {type(source).__name__}; it must be a fast tokenizer (a TokenizersBackend of "
                "transformers) without ID tokens: give the name or folder of the language model to build on"
            )
        inherited = {
            "model_input_names": source.model_input_names,
            "padding_side": source.padding_side,
            "truncation_side": source.truncation_side,
            "pad_token": source.pad_token or settings.get("pad_token") or source.eos_token or _no_pad_token(source),
        }
        with tempfile.TemporaryDirectory() as folder:  # saving and loading carries over all settings of any class
            source.save_pretrained(folder)
            _forget_last_call(Path(folder, TOKENIZER_FILE))
            tokenizer = cls.from_pretrained(
                folder, num_users=user_count, num_items=item_count, id_offset=id_offset, **{**inherited, **settings}
            )
        tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = source.name_or_path
        tokenizer.init_kwargs.pop("auto_map", None)  # a backbone with code of its own: not our code
        tokenizer._backbone_json = _own_tokenizer_json(source, kwargs) or tokenizer._backbone_json
        return tokenizer

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Pass `tokenizer.json` on unchanged: for a class with its own `__init__`, transformers would take it apart.

        Raises:
            FileNotFoundError: the folder has no `tokenizer.json`.
        """
        if kwargs.get("tokenizer_file") is None:
            raise FileNotFoundError(
                f"{kwargs.get('name_or_path')!r} has no {TOKENIZER_FILE}; {cls.__name__}.from_pretrained loads what "
                "save_pretrained wrote: for a language model's own tokenizer use from_backbone"
            )
        return kwargs

    # ---- ID tokens ----

    @overload
    def user_token_id(self, index: int) -> int: ...
    @overload
    def user_token_id(self, index: np.ndarray) -> np.ndarray: ...
    def user_token_id(self, index: int | np.ndarray) -> int | np.ndarray:
        """Return the token id of `<user_index>`: N + index.

        Args:
            index: user_index in [0, I), or a numpy array of such, of any shape.

        Returns:
            An integer, or an int64 array of the same shape.

        Raises:
            ValueError: an index out of range. TypeError: neither an integer nor an integer array.
        """
        return self._token_id("user", index)

    @overload
    def item_token_id(self, index: int) -> int: ...
    @overload
    def item_token_id(self, index: np.ndarray) -> np.ndarray: ...
    def item_token_id(self, index: int | np.ndarray) -> int | np.ndarray:
        """Return the token id of `<item_index>`: N + I + index. As `user_token_id`, with item_index in [0, J)."""
        return self._token_id("item", index)

    def is_user_id(self, ids: Any) -> Any:
        """Return whether token ids are those of users: a bool for an integer, booleans for an array or tensor."""
        return (ids >= self.id_offset) & (ids < self.id_offset + self.num_users)

    def is_item_id(self, ids: Any) -> Any:
        """Return whether token ids are those of items: a bool for an integer, booleans for an array or tensor."""
        return (ids >= self.id_offset + self.num_users) & (ids < len(self))

    def _token_id(self, kind: str, index: Any) -> Any:
        first, number = self._ranges[kind]
        if isinstance(index, Integral) and not isinstance(index, bool):
            if not 0 <= int(index) < number:
                _out_of_range(kind, index, number)
            return first + int(index)
        if not hasattr(index, "astype") or index.dtype.kind not in "iu":
            raise TypeError(f"{kind}_index must be an integer or a numpy array of integers, not {index!r}")
        outside = (index < 0) | (index >= number)
        if outside.any():
            _out_of_range(kind, index[outside].flat[0], number)
        return index.astype("int64") + first

    def _id_of(self, word: re.Match[str]) -> int | None:
        """Return the token id of an ID word, or `None` if its index is out of range."""
        first, number = self._ranges.get(word[1], (0, 0))
        index = int(word[2])
        return first + index if index < number else None

    def _id_of_token(self, token: str) -> int | None:
        word = ID_WORD.fullmatch(token)
        return self._id_of(word) if word else None

    def _add_stand_ins(self) -> None:
        """Add one ID word per kind and number of digits to the backend, with and without a space before it.

        They are special tokens to the backend, so that `split_special_tokens` switches them off.
        """
        for kind, (_, number) in self._ranges.items():
            for digits in range(1, len(str(number - 1)) + 1 if number else 1):
                self._stand_ins[kind, digits] = f"<{kind}_{0 if digits == 1 else 10 ** (digits - 1)}>"
        self._stand_in_tokens = frozenset(space + word for word in self._stand_ins.values() for space in ("", " "))
        taken = sorted(word for word in self._stand_in_tokens if self._tokenizer.token_to_id(word) is not None)
        taken += [str(token) for token in super().added_tokens_decoder.values() if ID_WORD.fullmatch(str(token))]
        if taken:
            raise ValueError(
                f"the backbone's vocabulary already has the token {taken[0]!r}, but ID words get their ids by "
                "arithmetic: use the backbone's tokenizer as it was before ID words were added"
            )
        self._tokenizer.add_special_tokens(
            [AddedToken(word, normalized=False, special=True) for word in sorted(self._stand_in_tokens)]
        )
        self._stand_in_ids = frozenset(self._tokenizer.token_to_id(word) for word in self._stand_in_tokens)
        if any(self._tokenizer.model.id_to_token(token_id) is not None for token_id in self._stand_in_ids):
            raise ValueError(
                f"the ids of the backbone's vocabulary have gaps (largest id {self._text_size - 1}): the tokenizers "
                "library cannot add a token to it; fill the gaps with unused tokens first"
            )

    # ---- Text to ids ----

    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,
        text_pair: Any = None,
        *,
        is_split_into_words: bool = False,
        return_tensors: Any = None,
        return_overflowing_tokens: bool = False,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        kwargs["is_split_into_words"] = is_split_into_words
        kwargs["return_overflowing_tokens"] = return_overflowing_tokens
        kwargs["split_special_tokens"] = split_special_tokens
        if split_special_tokens or kwargs.get("sanitize_control_tokens"):  # the latter comes back here piece by piece
            return super()._encode_plus(text, text_pair=text_pair, return_tensors=return_tensors, **kwargs)

        output = super()._encode_plus(self._with_stand_ins(text), text_pair=self._with_stand_ins(text_pair), **kwargs)
        is_batch = isinstance(text, (list, tuple)) and (not is_split_into_words or _is_nested(text))
        texts = text if is_batch else [text]
        pairs = text_pair if is_batch else [text_pair]
        is_flat = not is_batch and not return_overflowing_tokens  # one row, without a batch axis
        rows = {name: [value] if is_flat else value for name, value in output.items()}
        encodings: list[Any] = output.encodings or []
        for row, encoding in enumerate(encodings):
            ids = rows["input_ids"][row]
            if not self._stand_in_ids.isdisjoint(ids):
                sample = rows["overflow_to_sample_mapping"][row] if return_overflowing_tokens else row
                pair = None if pairs is None else pairs[sample]
                id_words = self._put_ids(ids, encoding, _sequences(texts[sample], pair, is_split_into_words))
                encodings[row] = EncodingWithIds(encoding, ids, id_words)
                if "offset_mapping" in rows:
                    rows["offset_mapping"][row][:] = encodings[row].offsets
        return BatchEncoding(dict(output), encodings, tensor_type=return_tensors, prepend_batch_axis=is_flat)

    def _with_stand_ins(self, text: Any) -> Any:
        """Replace each ID word in range by its stand-in, in a string or in lists and tuples of strings."""
        if isinstance(text, str):
            return ID_WORD.sub(self._stand_in, text)
        if isinstance(text, (list, tuple)):
            return type(text)(self._with_stand_ins(part) for part in text)
        return text

    def _stand_in(self, word: re.Match[str]) -> str:
        kind, digits = word.groups()
        return self._stand_ins[kind, len(digits)] if int(digits) < self._ranges[kind][1] else word[0]

    def _put_ids(self, ids: list[Any], encoding: Any, sequences: Sequence[Any]) -> dict[int, IdWord]:
        """Replace the stand-ins in `ids`, in place, and return the ID word at each such position."""
        words: dict[int, IdWord] = {}
        stand_in_ids = self._stand_in_ids
        for position, token_id in enumerate(ids):
            if token_id in stand_in_ids:
                text = sequences[encoding.token_to_sequence(position)]
                if not isinstance(text, str):
                    text = text[encoding.token_to_word(position)]
                word = next(ID_WORD.finditer(text, *encoding.token_to_chars(position)))
                ids[position] = self._id_of(word)
                words[position] = word[0], word.span()
        return words

    # ---- Ids to text ----

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return tokens as every tokenizer does; ID tokens give their ID word, ids out of range give `None`."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(int(token_id)) for token_id in ids if int(token_id) not in skipped]

    def _convert_id_to_token(self, index: int) -> str | None:
        if index < self._text_size:
            return super()._convert_id_to_token(index)
        for kind, (first, number) in self._ranges.items():
            if first <= index < first + number:
                return f"<{kind}_{index - first}>"
        return None

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        token_id = self._id_of_token(token)
        if token_id is not None:
            return token_id
        if token in self._stand_in_tokens:  # one with a space before it
            return self.unk_token_id
        return super()._convert_token_to_id_with_added_voc(token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text; an ID word gets its space, but not at the beginning or after a line break or tab."""
        decoder = self.decoder
        if decoder is None or decoder.decode(["a", "<user_0>"]) != "a<user_0>":  # puts spaces between words itself
            return super().convert_tokens_to_string(tokens)
        spaced = list(tokens)
        for position in range(1, len(tokens)):
            if ID_WORD.fullmatch(tokens[position]):
                before = decoder.decode(["a", tokens[position - 1]])[-1]
                if before == " " or not before.isspace():
                    spaced[position] = " " + tokens[position]
        return super().convert_tokens_to_string(spaced)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        if max(ids, default=0) < self._text_size:
            return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        skipped = self._special_backend_ids() if skip_special_tokens else frozenset()
        tokens = (self._convert_id_to_token(token_id) for token_id in ids if token_id not in skipped)
        text = self.convert_tokens_to_string([token for token in tokens if token is not None])
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces and type(self._tokenizer.model).__name__ != "BPE":  # as transformers does
            return self.clean_up_tokenization(text)
        return text

    def _special_backend_ids(self) -> frozenset[int]:
        if self._special_ids is None:
            added = self.added_tokens_decoder.items()
            self._special_ids = frozenset(token_id for token_id, token in added if token.special)
        return self._special_ids

    # ---- Vocabulary ----

    def __len__(self) -> int:
        """N + I + J, one more than the largest token id."""
        return self.id_offset + self.num_users + self.num_items

    def get_vocab(self) -> dict[str, int]:
        """Return the text tokens and their ids, without ID words, which `convert_tokens_to_ids` converts."""
        vocabulary = super().get_vocab()
        for word in self._stand_in_tokens:
            vocabulary.pop(word)
        return vocabulary

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The backbone's added tokens by id."""
        added = super().added_tokens_decoder
        return {token_id: token for token_id, token in added.items() if token_id not in self._stand_in_ids}

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Refuse new tokens; tokens that exist already may get new settings.

        `add_tokens` and `add_special_tokens` call it.

        Raises:
            ValueError: a token that does not exist yet.
        """
        if self._ranges:  # not while the backbone's own special tokens are loaded
            new_tokens = [token for token in new_tokens if self._id_of_token(str(token)) is None]
            known = self.get_vocab()
            missing = [str(token) for token in new_tokens if str(token) not in known]
            if missing:
                raise ValueError(
                    f"cannot add {missing[0]!r}: the ids from {self.id_offset} on belong to users and items; add "
                    "tokens to the backbone's tokenizer (and resize the backbone) before from_backbone"
                )
            self._special_ids = None
        return super()._add_tokens(list(new_tokens), special_tokens=special_tokens)

    def train_new_from_iterator(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError: train a tokenizer for the backbone and use `from_backbone`."""
        raise NotImplementedError("train a new tokenizer from the backbone's own, then use from_backbone on the result")

    # ---- Saving ----

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Write `tokenizer.json`: the backbone's own file, byte for byte, unless it would load as something else."""
        path = Path(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + TOKENIZER_FILE)
        state = self._text_state()
        if self._backbone_json is not None and self._state_of(self._backbone_json) == state:
            path.write_bytes(self._backbone_json)
        else:
            Backend.from_str(json.dumps(state)).save(str(path))
        return (*file_names, str(path))

    def _text_state(self) -> dict[str, Any]:
        """Return the backend as JSON, without stand-ins and without truncation and padding of the last call."""
        state: dict[str, Any] = json.loads(self._tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in self._stand_in_tokens]
        return state

    def _state_of(self, tokenizer_json: bytes) -> dict[str, Any]:
        """Return the backend as JSON that a folder with this `tokenizer.json` and our settings would load."""
        backend = Backend.from_str(tokenizer_json.decode("utf-8"))
        return type(self)(**{**self.init_kwargs, "tokenizer_object": backend})._text_state()


class EncodingWithIds:
    """An `Encoding` of the tokenizers library with its stand-ins replaced, for the look-ups of `BatchEncoding`.

    Args:
        encoding: the backend's, with stand-ins of the same length in place of ID words.
        ids: (length,) token ids with ID tokens.
        id_words: the ID word at each position that has one.
    """

    _UNCHANGED = frozenset(
        "attention_mask char_to_token char_to_word n_sequences sequence_ids special_tokens_mask token_to_sequence "
        "token_to_word type_ids word_ids word_to_chars word_to_tokens words".split()
    )

    def __init__(self, encoding: BackendEncoding, ids: list[int], id_words: dict[int, IdWord]) -> None:
        self._encoding = encoding
        self._id_words = id_words
        self.ids = list(ids)

    @property
    def tokens(self) -> list[str]:
        """(length,) tokens, with the ID words."""
        tokens: list[str] = self._encoding.tokens
        for position, (word, _) in self._id_words.items():
            tokens[position] = word
        return tokens

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(length,) characters of the original text that each token covers; for an ID token, exactly its ID word."""
        offsets: list[tuple[int, int]] = self._encoding.offsets
        for position, (_, span) in self._id_words.items():
            offsets[position] = span
        return offsets

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        """Return the characters that a token covers, as in `offsets`; `None` for a token without text."""
        word = self._id_words.get(token_index)
        return word[1] if word else self._encoding.token_to_chars(token_index)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the backend's encoding that stand-ins do not change."""
        if name not in EncodingWithIds._UNCHANGED:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}; for overflowing tokens call the tokenizer with "
                "return_overflowing_tokens=True"
            )
        return getattr(self._encoding, name)


def _is_nested(text: Any) -> bool:
    return len(text) > 0 and isinstance(text[0], (list, tuple))


def _sequences(text: Any, pair: Any, is_split_into_words: bool) -> Sequence[Any]:
    """Return the one or two sequences of a sample: strings, or lists of words when split into words."""
    if pair:
        return text, pair
    if isinstance(text, (list, tuple)) and (not is_split_into_words or _is_nested(text)):
        return text  # a pair given as one argument
    return (text,)


def _count(field: str, value: Any) -> int:
    if value is None:
        raise ValueError(f"{field} is missing; give a number, or make the tokenizer with from_backbone")
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{field} is {value!r}; it must be an integer, 0 or more")
    return int(value)


def _count_from(count_name: str, count: Any, ids_name: str, ids: Sized | None) -> int:
    if (count is None) == (ids is None):
        raise ValueError(
            f"{'neither' if ids is None else 'both'} {count_name} {'nor' if ids is None else 'and'} {ids_name} given; "
            f"give one of them: {count_name}= a number, or {ids_name}= the external ids"
        )
    if ids is not None and (isinstance(ids, str) or not hasattr(ids, "__len__")):
        raise ValueError(f"{ids_name} is a {type(ids).__name__}; it must be a list or array of external ids")
    return _count(count_name, count) if ids is None else len(ids)


def _out_of_range(kind: str, index: Any, number: int) -> NoReturn:
    raise ValueError(f"{kind}_index is {int(index)}; it must lie in [0, {number}): there are {number} {kind}s")


def _no_pad_token(source: TokenizersBackend) -> NoReturn:
    raise ValueError(
        f"the tokenizer of {source.name_or_path!r} has neither pad_token nor eos_token, so batches cannot be padded; "
        f"name one of its tokens, as from_backbone(..., pad_token={source.convert_ids_to_tokens(0)!r})"
    )


def _forget_last_call(tokenizer_json: Path) -> None:
    """Remove the truncation and padding that transformers leaves in a backend after a call."""
    state = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    state["truncation"] = state["padding"] = None
    tokenizer_json.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def _own_tokenizer_json(source: TokenizersBackend, kwargs: dict[str, Any]) -> bytes | None:
    """Return the bytes of a backbone's own `tokenizer.json`, or `None` if it has none."""
    if not source.name_or_path:
        return None
    where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder") if name in kwargs}
    try:
        path = cached_file(source.name_or_path, TOKENIZER_FILE, local_files_only=True, **where)
    except OSError:
        return None
    return None if path is None else Path(path).read_bytes()


__all__ = ["CLLM4RecTokenizer", "EncodingWithIds", "ID_WORD"]
