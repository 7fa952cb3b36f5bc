"""Recommendation corpora (section 3.2 of the paper): text documents in Arrow, and histories in a new order each epoch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.catalogue_changes import mean_word_rows
from modeling_cllm4rec.cllm4rec.prompts import Prompts, tokenize_template
from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.language_model import end_tokens
from modeling_cllm4rec.core.prompt_assembly import build_input_ids
from modeling_cllm4rec.core.ragged import RaggedRows, span_positions
from modeling_cllm4rec.corpora.counter_draws import counter_draws
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.item_texts import BIOGRAPHY, ITEM_TEXTS

logger = logging.getLogger(__name__)


class TextCorpus:
    """Text documents of a data folder, tokenized once into an Arrow file.

    Each row has `input_ids` (prompt with ID tokens, main text, end token), `prompt_length` and `kind`. The documents are the
    item texts, the user biographies, and the reviews of training pairs. Words of a text that look like ID tokens stay words.

    Args:
        data: the prepared folder.
        tokenizer: a `CLLM4RecTokenizer`.
        prompts: templates.
        context_length: context length of the backbone in tokens.
        max_text_tokens: main texts are cut after this many tokens; None cuts nothing.
        cache_folder: folder of the Arrow files; another run with the same texts, prompts and tokenizer reads them.
    """

    def __init__(
        self,
        data: RecommendationData,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        *,
        context_length: int,
        max_text_tokens: int | None = None,
        cache_folder: str | Path,
    ) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        self.context_length = context_length
        self.end = end_tokens(tokenizer)
        self.first_user = tokenizer.id_offset
        self.first_item = tokenizer.id_offset + data.num_users
        self.cache_folder = Path(cache_folder)
        self.cache_folder.mkdir(parents=True, exist_ok=True)
        parts = [self._tokenize(kind, *source) for kind, source in self._sources(prompts).items()]
        self.documents = concatenate_datasets(parts) if parts else None
        self.lengths = self._lengths()
        self._map_chunks()

    def __len__(self) -> int:
        return 0 if self.documents is None else len(self.documents)

    def _sources(self, prompts: Prompts) -> dict[str, tuple[list[Any], np.ndarray | None, np.ndarray | None, list[str]]]:
        """Return kind -> (prompt segments, user indices, item indices, main texts) of the texts that are not empty."""
        data = self.data
        sources: dict[str, tuple[list[Any], np.ndarray | None, np.ndarray | None, list[str]]] = {}
        for column in ITEM_TEXTS:
            if column in data.items.column_names:
                texts = text_column(data.items, column)
                rows = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
                segments = tokenize_template(prompts.item_text, self.tokenizer, column=column)
                sources[column] = (segments, None, rows, [texts[row] for row in rows])
        if BIOGRAPHY in data.users.column_names:
            texts = text_column(data.users, BIOGRAPHY)
            rows = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
            sources[BIOGRAPHY] = (tokenize_template(prompts.biography, self.tokenizer), rows, None, [texts[row] for row in rows])
        reviews = data.reviews()
        users, items = (reviews[name].to_numpy() for name in ("user_index", "item_index"))
        sources["review"] = (tokenize_template(prompts.review, self.tokenizer), users, items, reviews["review"].to_pylist())
        return {kind: source for kind, source in sources.items() if source[3]}

    def _tokenize(
        self, kind: str, segments: list[Any], users: np.ndarray | None, items: np.ndarray | None, texts: list[str]
    ) -> Dataset:
        """Tokenize the documents of one kind, or read them from the cache."""
        columns: dict[str, Any] = {"text": texts}
        if users is not None:
            columns["user"] = users
        if items is not None:
            columns["item"] = items
        source = Dataset.from_dict(columns)
        # A fingerprint of the contents is the same in each process; that of `datasets` would pickle this whole object.
        identity = [kind, segments, self.max_text_tokens, self.first_user, self.first_item, self.end]
        digest = hashlib.sha256(json.dumps(identity).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        for index in (users, items):
            digest.update(b"-" if index is None else index.tobytes())
        for text in texts:
            digest.update(text.encode() + b"\0")
        fingerprint = digest.hexdigest()[:32]
        return source.map(
            self._encode,
            batched=True,
            remove_columns=source.column_names,
            fn_kwargs={"segments": segments, "kind": kind},
            cache_file_name=str(self.cache_folder / f"{kind}-{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            desc=f"tokenizing {kind}",
        )

    def _encode(self, batch: dict[str, list[Any]], segments: list[Any], kind: str) -> dict[str, list[Any]]:
        """Tokenize a batch of main texts and put their prompts before them."""
        # split_special_tokens: a special token written into a review must not act as one.
        words = self.tokenizer(batch["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        rows, prompt_lengths = [], []
        for number, main_text in enumerate(words):
            user = self.first_user + batch["user"][number] if "user" in batch else None
            item = self.first_item + batch["item"][number] if "item" in batch else None
            prompt = build_input_ids(segments, user=user, item=item)
            # A cut text gets no end token, or the model would learn to end after `max_text_tokens`.
            closing = self.end if self.max_text_tokens is None or len(main_text) < self.max_text_tokens else []
            rows.append(np.concatenate([prompt, main_text[: self.max_text_tokens], closing]).astype(np.int32))
            prompt_lengths.append(len(prompt))
        return {"input_ids": rows, "prompt_length": prompt_lengths, "kind": [kind] * len(rows)}

    def _lengths(self) -> np.ndarray:
        """Return the (documents,) lengths, read from the Arrow offsets without reading the tokens."""
        if self.documents is None:
            return np.zeros(0, np.int64)
        return np.asarray(pc.list_value_length(self.documents.data["input_ids"]).to_numpy(), dtype=np.int64)

    def _map_chunks(self) -> None:
        """Read where the tokens of each document are; the tokens themselves stay in the Arrow files."""
        columns = {} if self.documents is None else {name: self.documents.data[name] for name in ("input_ids", "prompt_length")}
        lists = columns["input_ids"].chunks if columns else []
        # `values` of a list array ignores that it may be a slice of one; its offsets do not.
        self._chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in lists]
        self._first_rows = np.cumsum([0, *map(len, lists)])[: len(lists)]
        self._prompt_lengths = columns["prompt_length"].to_numpy() if columns else np.zeros(0, np.int64)

    def check_lengths(self) -> None:
        """Check that all documents fit into the context, before they are trained.

        Raises:
            InputError: some do not; their number and the longest are named.
        """
        too_long = int((self.lengths > self.context_length).sum())
        if too_long:
            raise InputError(
                f"{too_long} text documents are longer than the backbone's context of {self.context_length} tokens (the "
                f"longest has {self.lengths.max()}); set max_text_tokens to cut them, at most about "
                f"{self.context_length - 32}"
            )

    def rows(self, indices: Sequence[int] | np.ndarray) -> tuple[RaggedRows, np.ndarray]:
        """Return the token ids of the documents `indices`, and the lengths of their prompts.

        Raises:
            InputError: the data has no texts.
        """
        if self.documents is None:
            raise InputError("this data has no texts")
        numbers = np.asarray(indices)
        chunks = np.searchsorted(self._first_rows, numbers, side="right") - 1
        places = numbers - self._first_rows[chunks]
        parts = []
        for chunk, place in zip(chunks.tolist(), places.tolist(), strict=True):
            offsets, tokens = self._chunks[chunk]
            parts.append(tokens[offsets[place] : offsets[place + 1]])
        return RaggedRows.of(parts), self._prompt_lengths[numbers]


class HistoryCorpus:
    """Interaction documents: one per user with a training history, its items in a new order each epoch.

    Args:
        histories: training histories as compressed rows.
        seed: seed of the random numbers; the order of user u in epoch e depends on (seed, e, u) and the length of the history.
        reorder: False keeps the order of the data (the LLM-FixOrd variant of the paper).
    """

    def __init__(self, histories: Histories, seed: int, reorder: bool = True) -> None:
        self.histories = histories
        self.seed = seed
        self.reorder = reorder
        self.lengths = np.diff(histories.indptr)
        self.users = np.flatnonzero(self.lengths > 0)

    def rows(self, users: np.ndarray) -> RaggedRows:
        """Return the item indices of users, in the order of the data."""
        starts = self.histories.indptr[users]
        lengths = self.lengths[users]
        items = self.histories.items[span_positions(starts, lengths)]
        return RaggedRows.of_lengths(items.astype(np.int64, copy=False), lengths)

    def reordered(self, users: np.ndarray, epoch: int) -> RaggedRows:
        """Return the item indices of users in the order of an epoch (stochastic item reordering, section 3.2.1)."""
        rows = self.rows(users)
        return RaggedRows(rows.values[self._order(rows, users, epoch)], rows.indptr) if self.reorder else rows

    def _order(self, rows: RaggedRows, users: np.ndarray, epoch: int) -> np.ndarray:
        """Return (all,) positions of the items of rows, each row in a random order of its own."""
        # A counter per user and item rather than one generator: a resumed run, or another process that reads this user, draws the
        # same order. The last number keeps orders, dropped users and cuts apart.
        number, place = _places(rows)
        draws = counter_draws((self.seed, epoch, 0), users[number], place)
        return np.argsort(number + draws, kind="stable")

    def user_tokens(self, users: np.ndarray, epoch: int, drop: float) -> np.ndarray:
        """Replace users by -1 with probability `drop`; their documents are written without the user's token.

        Without the token the model must predict an item from the other items, and prompts of users without a token are in
        distribution.

        Args:
            users: (batch,) user indices.
            epoch: the draw of user u depends on (seed, epoch, u) alone.
            drop: probability of -1.
        """
        return np.where(counter_draws((self.seed, epoch, 1), users) < drop, -1, users)

    def split_holdout(self, users: np.ndarray, epoch: int, share: float) -> tuple[RaggedRows, RaggedRows]:
        """Mask a random share of each history (section 3.4): of n items, max(1, int(share * n)) are held out.

        Without reordering, the held-out items are still random, and the others keep their order.

        Returns:
            The item indices of the prompts, reordered, and the held-out item indices.
        """
        rows = self.rows(users)
        order, (_, place) = self._order(rows, users, epoch), _places(rows)
        held = np.maximum(1, (share * rows.lengths).astype(np.int64))
        is_held = place < np.repeat(held, rows.lengths)
        kept = order[~is_held] if self.reorder else np.sort(order[~is_held])
        return (
            RaggedRows.of_lengths(rows.values[kept], rows.lengths - held),
            RaggedRows.of_lengths(rows.values[order[is_held]], held),
        )

    def split_next(self, users: np.ndarray, epoch: int) -> tuple[RaggedRows, RaggedRows]:
        """Cut each history before a random item, which is the target; what follows it is left out.

        Returns:
            The item indices before it, at least one unless the history has a single item, and the target's index.
        """
        rows = self.rows(users)
        lengths = rows.lengths
        cuts = np.minimum(1 + (counter_draws((self.seed, epoch, 2), users) * (lengths - 1)).astype(np.int64), lengths - 1)
        targets = rows.values[rows.indptr[:-1] + cuts]
        read = rows.values[span_positions(rows.indptr[:-1], cuts)]
        return RaggedRows.of_lengths(read, cuts), RaggedRows.of_lengths(targets, np.ones(len(users), dtype=np.int64))


def _places(rows: RaggedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each value, and its place in the row: (all,) each."""
    number = np.repeat(np.arange(len(rows)), rows.lengths)
    return number, np.arange(len(number)) - rows.indptr[number]


def initial_item_rows(
    data: RecommendationData, tokenizer: PreTrainedTokenizerBase, word_rows: np.ndarray, columns: Iterable[str] = ITEM_TEXTS
) -> np.ndarray:
    """Return initial item rows: the mean word embedding of each item's title, brand and categories.

    Args:
        word_rows: (N, K) word embeddings of the backbone.
        columns: text columns to read, if the data has them; the default of the recipe leaves `description` out.

    Returns:
        (J, K) float32; NaN rows for items without any text.
    """
    return mean_word_rows(data.items, tokenizer, word_rows, columns)
