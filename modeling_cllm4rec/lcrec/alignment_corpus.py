"""Alignment corpora (section III-C of LC-Rec, arXiv 2311.09049): tasks between language and item indices, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import OnMissingText, item_texts
from modeling_cllm4rec.lcrec.alignment_documents import (
    Documents,
    Integers,
    Template,
    cut_templates,
    last_items,
    prefixes,
    windows,
)
from modeling_cllm4rec.lcrec.alignment_templates import (
    BOTH,
    DESCRIPTION,
    HISTORY,
    INDEX,
    PREFERENCE,
    TASKS,
    TITLE,
    TITLE_HISTORY,
    AlignmentTemplates,
    checked_tasks,
    load_templates,
    query_pieces,
    recommendation_pieces,
    separator_ids,
    title_separator_ids,
)
from modeling_cllm4rec.lcrec.intentions import Intentions, extract_intentions
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY, items_that_fit, semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, semantic_id_token
from modeling_cllm4rec.lcrec.token_texts import TokenTexts, encode_texts

__all__ = [
    "TASKS",
    "AlignmentCorpus",
    "AlignmentTemplates",
    "load_templates",
    "query_pieces",
    "recommendation_pieces",
    "separator_ids",
]


class _Plan(NamedTuple):
    """How some documents look: template, query, items (or titles) of the history that are read, and tokens in all."""

    template: Integers
    query: Integers
    read: Integers
    length: Integers


class AlignmentCorpus:
    """Documents of all alignment tasks: an instruction, in one of the task's templates, and a response.

    | task | instruction -> response | documents |
    |---|---|---|
    | `seqrec` | indices of a history -> the next index | see `seqrec` |
    | `item2index` | title, description, or both -> index | an item |
    | `index2item` | index -> title, description, or both | an item |
    | `fusionseqrec` | indices -> title or description of the next item; titles -> next index | a training item but each first |
    | `itemsearch` | query -> index; history and query -> index | an item; a user's last training item |
    | `preferenceobtain` | history without its last item -> preference | a user |

    Histories are those of the split `train`, in their order. A response of words is closed by the tokenizer's end token; an
    index is exactly its H tokens. The template of each document is drawn anew for every epoch, from (seed, epoch) alone.

    Args:
        data: the prepared folder.
        tokenizer: the language model's, with the index tokens added.
        index: the items' codes; first_index_token: id of code 0 of the first level.
        templates: the wording (default: the packaged one).
        tasks: task -> share of its documents that an epoch reads, in (0, 1], drawn anew for every epoch.
        seed: start of all random numbers.
        max_history: most items of a history, the last ones; fewer where the context holds no more of them, whole.
        context_length: tokens that the language model reads at once.
        max_text_tokens: cut texts after so many tokens; None cuts nothing.
        seqrec: `"together"`: one pass over a history predicts each of its items from those before it (a history of more than
            max_history + 1 items is cut into several documents that share one item, so that each item is a target once);
            `"apart"`: a document for each prefix, as in the paper.
        reorder: probability that a seqrec document lists its history in a random order in an epoch, read together with its
            target; the paper's is 0.
        on_missing_text: for items without a description, see `item_texts`: `"title-only"` leaves them to the titles.
        intentions: queries and preferences (default: `extract_intentions`).
        cache_folder: where token ids are kept; None keeps nothing.

    Raises:
        InputError: an unknown task, a share outside (0, 1], a task without documents, items without text, a text that does
            not fit the context, an index of another catalogue or tokenizer.

    Example:
        >>> corpus = AlignmentCorpus(data, tokenizer, index, first, context_length=512)  # doctest: +SKIP
        >>> rows, counted = corpus.rows(corpus.documents(epoch=0)[:32], epoch=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        data: RecommendationData,
        tokenizer: PreTrainedTokenizerBase,
        index: SemanticIds,
        first_index_token: int,
        *,
        templates: AlignmentTemplates | None = None,
        tasks: Mapping[str, float] | None = None,
        seed: int = 0,
        max_history: int = 20,
        context_length: int,
        max_text_tokens: int | None = None,
        seqrec: Literal["together", "apart"] = "together",
        reorder: float = 0.0,
        on_missing_text: OnMissingText = "raise",
        intentions: Intentions | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        self.tasks = checked_tasks(tasks)
        _check_index(data, tokenizer, index, first_index_token)
        if seqrec not in ("together", "apart"):
            raise InputError(f"seqrec is {seqrec!r}; allowed are 'together' and 'apart'")
        for name, value in (("max_history", max_history), ("max_text_tokens", max_text_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= reorder <= 1:
            raise InputError(f"reorder is {reorder}; it must lie between 0 and 1")
        self.seed, self.context_length, self.max_history, self.together = seed, context_length, max_history, seqrec == "together"
        self.reorder = reorder
        self.histories = data.histories("train")
        self._data = data
        self._templates = cut_templates(templates or load_templates(), self.tasks, tokenizer)
        self._num_levels = index.num_levels
        self._separator = len(separator_ids(tokenizer))
        self._title_separator = np.array(title_separator_ids(tokenizer), dtype=np.int64)
        tokens = semantic_id_tokens(index.codes, first_index_token, index.codebook_size)
        marks = np.tile(np.array(separator_ids(tokenizer), dtype=np.int64), (len(tokens), 1))
        self._index_tokens, self._blocks = tokens, np.concatenate([tokens, marks], axis=1)
        self._read_texts(tokenizer, on_missing_text, intentions, max_text_tokens, cache_folder)
        self._seqrec_history = self._longest_seqrec_history() if "seqrec" in self.tasks else max_history
        self._documents = self._list_documents()
        self._counts = np.bincount(self._documents.task, minlength=len(TASKS))
        self._drawn: tuple[int, np.ndarray] | None = None
        self._check_lengths()

    def __len__(self) -> int:
        return len(self._documents.task)

    # ---- What there is ----

    def _read_texts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_missing_text: OnMissingText,
        intentions: Intentions | None,
        max_text_tokens: int | None,
        cache_folder: str | Path | None,
    ) -> None:
        """Encode the texts that the tasks need; queries of one item stand next to one another."""
        data = self._data

        def encode(texts: list[str]) -> TokenTexts:
            return encode_texts(texts, tokenizer, max_text_tokens, cache_folder)

        self._texts: dict[str, TokenTexts] = {}
        self._described = np.zeros(data.num_items, dtype=bool)
        if {"item2index", "index2item", "fusionseqrec"} & set(self.tasks):
            texts = item_texts(data.items, (TITLE, DESCRIPTION), on_missing_text)
            pairs = list(zip(texts[TITLE], texts[DESCRIPTION], strict=True))
            self._described[:] = [bool(text) for text in texts[DESCRIPTION]]
            whole = [f"{title}{'' if title[-1] in '.!?' else '.'} {text}".strip() for title, text in pairs]
            self._texts = {TITLE: encode(texts[TITLE]), DESCRIPTION: encode(texts[DESCRIPTION]), BOTH: encode(whole)}
            before = self._texts[TITLE].lengths[self.histories.items] + len(self._title_separator)
            self._title_tokens_before = np.concatenate([[0], np.cumsum(before)])
        self.intentions: Intentions | None = None
        if {"itemsearch", "preferenceobtain"} & set(self.tasks):
            made = intentions or extract_intentions(data, self.seed, self.max_history)
            if len(made.queries) != data.num_items or not all(made.queries) or len(made.preferences) != data.num_users:
                raise InputError(
                    f"intentions: there must be one query or more for each of {data.num_items} items and a text for each of "
                    f"{data.num_users} users, got {len(made.queries)} and {len(made.preferences)}; make them from this data"
                )
            self.intentions = made
            self._texts[QUERY] = encode([text for texts in made.queries for text in texts])
            self._texts[PREFERENCE] = encode(made.preferences)
            self._queries_of = np.array([len(texts) for texts in made.queries], dtype=np.int64)
            self._first_query = np.cumsum(self._queries_of) - self._queries_of
            parts = np.split(self._texts[QUERY].lengths, self._first_query[1:])
            self._longest_query = self._first_query + np.array([part.argmax() for part in parts])

    def _longest_seqrec_history(self) -> int:
        """Items of a seqrec history, at most: as many as fit with the longest template and the target."""
        words = max(template.words for template in self._templates if template.task == "seqrec")
        room = self.context_length - words - self._num_levels
        fit = int(items_that_fit(room, self._num_levels, self._separator, closed=True))
        if fit < 1:
            raise InputError(
                f"the longest template of seqrec has {words} tokens, and with the indices of two items it does not fit the "
                f"context of {self.context_length}: shorten it, or use a backbone with a longer context"
            )
        return min(self.max_history, fit)

    def _list_documents(self) -> Documents:
        every, items = np.arange(self._data.num_items), self.histories.items.astype(np.int64)
        alone = (every, np.zeros_like(every), np.zeros_like(every))
        last = last_items(self.histories)
        parts: list[Documents] = []
        for task in self.tasks:
            if task in ("item2index", "index2item"):
                found = [alone]
            elif task == "itemsearch":
                found = [alone, (items[last.end], last.begin, last.end)]
            elif task == "preferenceobtain":
                known = self._texts[PREFERENCE].lengths[last.user] > 0
                found = [(last.user[known], last.begin[known], last.end[known])]
            else:
                together = task == "seqrec" and self.together
                some = windows(self.histories, self._seqrec_history) if together else prefixes(self.histories)
                found = [(items[some.end], some.begin, some.end)]
            subject, begin, end = (np.concatenate(columns) for columns in zip(*found, strict=True))
            if not len(subject):
                raise InputError(f"the task {task} has no documents: no user has two training items; leave it out of tasks")
            first, choices = self._templates_of(task, subject, end)
            parts.append(Documents(np.full(len(subject), TASKS.index(task)), subject, begin, end, first, choices))
        return Documents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _templates_of(self, task: str, subject: Integers, end: Integers) -> tuple[Integers, Integers]:
        """First template and number of templates that suit each document."""
        kinds = [template.kind for template in self._templates if template.task == task]
        first = np.full(len(subject), [template.task for template in self._templates].index(task))
        choices = np.full(len(subject), len(kinds))
        if task == "itemsearch":
            alone = kinds.count(QUERY)
            has_history = end > 0
            return first + alone * has_history, np.where(has_history, len(kinds) - alone, alone)
        if task in ("item2index", "index2item", "fusionseqrec"):
            plain = sum(kind in (TITLE, INDEX) for kind in kinds)
            choices = np.where(self._described[subject], choices, plain)
        return first, choices

    def _check_lengths(self) -> None:
        """Every document fits, whichever of its templates and queries is drawn."""
        longest: dict[tuple[str, str], int] = {}
        for number, template in enumerate(self._templates):
            known = longest.setdefault((template.task, template.kind), number)
            if template.words > self._templates[known].words:
                longest[template.task, template.kind] = number
        for number in longest.values():
            template, documents = self._templates[number], self._documents
            numbers = np.flatnonzero((documents.first <= number) & (number < documents.first + documents.choices))
            query = self._longest_query[self._searched(numbers)] if QUERY in template.asks else np.zeros_like(numbers)
            read, length = self._sizes(template, numbers, query)
            bad = numbers[(read < 1) & bool(template.asks & {ITEMS, TITLE_HISTORY}) | (length > self.context_length)]
            if len(bad):
                what = "user_id" if template.task == "preferenceobtain" else "item_id"
                ids = (self._data.users if what == "user_id" else self._data.items)[what]
                named = [ids[int(subject)].as_py() for subject in documents.subject[bad[:5]]]
                room = (self.context_length - template.words - 2 * self._num_levels) // 2
                raise InputError(
                    f"{len(bad)} documents of {template.task} do not fit the context of {self.context_length} tokens, such as "
                    f"those of {what} {named}: their texts are too long; set max_text_tokens, to {max(1, room)} or so, to have "
                    "texts cut there"
                )

    def _searched(self, numbers: Integers) -> Integers:
        """(n,) items whose queries documents hold, 0 for those of other tasks."""
        asks = self._documents.task[numbers] == TASKS.index("itemsearch")
        return np.where(asks, self._documents.subject[numbers], 0)

    # ---- What an epoch reads ----

    def documents(self, epoch: int) -> Integers:
        """(documents of this epoch,) their numbers, in order: each task's share, drawn from (seed, epoch)."""
        chosen, start = [], 0
        for number, task in enumerate(TASKS):
            count = int(self._counts[number])
            if task in self.tasks:
                wanted = max(1, round(self.tasks[task] * count))
                order = np.random.default_rng((self.seed, epoch, 2, number)).permutation(count)
                chosen.append(start + np.sort(order[:wanted]))
            start += count
        return np.concatenate(chosen)

    def tasks_of(self, numbers: Sequence[int] | Integers) -> npt.NDArray[np.str_]:
        """(n,) names of the documents' tasks."""
        return np.array(TASKS)[self._documents.task[np.asarray(numbers)]]

    def lengths(self, numbers: Sequence[int] | Integers, epoch: int) -> Integers:
        """(n,) tokens of documents in an epoch, which depend on the templates drawn."""
        return self._plan(np.asarray(numbers), epoch).length

    def rows(self, numbers: Sequence[int] | Integers, epoch: int) -> tuple[list[Integers], list[npt.NDArray[np.bool_]]]:
        """Token ids of documents in an epoch, and which of them count.

        Returns:
            Token ids of each document, and for each of its tokens True where it is to be predicted from those before it: the
            response, in a seqrec document read together the index tokens of all items but the first.
        """
        numbers = np.asarray(numbers)
        plan = self._plan(numbers, epoch)
        rows, counted = [], []
        for number, template, query, read in zip(numbers, plan.template, plan.query, plan.read, strict=True):
            row, counts = self._row(int(number), self._templates[template], int(query), int(read), epoch)
            rows.append(row)
            counted.append(counts)
        return rows, counted

    def _plan(self, numbers: Integers, epoch: int) -> _Plan:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, np.random.default_rng((self.seed, epoch, 1)).random((len(self), 2)))
        draws = self._drawn[1][numbers]
        chosen = self._documents
        template = chosen.first[numbers] + (draws[:, 0] * chosen.choices[numbers]).astype(np.int64)
        query = np.zeros(len(numbers), dtype=np.int64)
        if QUERY in self._texts:
            items = self._searched(numbers)
            query = self._first_query[items] + (draws[:, 1] * self._queries_of[items]).astype(np.int64)
        read, length = np.zeros_like(template), np.zeros_like(template)
        for one in np.unique(template):
            places = np.flatnonzero(template == one)
            read[places], length[places] = self._sizes(self._templates[one], numbers[places], query[places])
        return _Plan(template, query, read, length)

    def _sizes(self, template: Template, numbers: Integers, query: Integers) -> tuple[Integers, Integers]:
        """(n,) items of the history that are read, and (n,) tokens, of documents in one template."""
        documents, levels, separator = self._documents, self._num_levels, self._separator
        subject, begin, end = (column[numbers] for column in (documents.subject, documents.begin, documents.end))
        words = np.full(len(numbers), template.words)
        if INDEX in template.asks:
            words += levels
        if QUERY in template.asks:
            words += self._texts[QUERY].lengths[query]
        for text in template.asks & {TITLE, DESCRIPTION}:
            words += self._texts[text].lengths[subject]
        if template.response in (INDEX, HISTORY):
            words += levels
        else:
            texts = self._texts[template.response]
            words += texts.lengths[subject] + texts.ends[subject]
        room = self.context_length - words
        if ITEMS in template.asks:
            closed = template.task == "seqrec"
            most = self._seqrec_history if closed else self.max_history
            read = np.minimum(np.minimum(end - begin, most), items_that_fit(room, levels, separator, closed))
            return read, words + read * (levels + separator) - (0 if closed else separator)
        if TITLE_HISTORY in template.asks:
            before, mark = self._title_tokens_before, len(self._title_separator)
            start = np.searchsorted(before, before[end] - mark - room)
            start = np.maximum(np.maximum(start, begin), end - self.max_history)
            return end - start, words + before[end] - before[np.minimum(start, end)] - mark
        return np.zeros(len(numbers), dtype=np.int64), words

    def _row(self, number: int, template: Template, query: int, read: int, epoch: int) -> tuple[Integers, npt.NDArray[np.bool_]]:
        subject, end = int(self._documents.subject[number]), int(self._documents.end[number])
        history = self.histories.items[end - read : end]
        if template.task == "seqrec" and self.reorder:
            history, subject = self._reordered(history, subject, number, epoch)
        parts: list[np.ndarray] = []
        for piece in template.pieces:
            if not isinstance(piece, str):
                parts.append(piece)
            elif piece == ITEMS:
                blocks = self._blocks[history].reshape(-1)
                parts.append(blocks if template.task == "seqrec" else blocks[: len(blocks) - self._separator])
            elif piece == INDEX:
                parts.append(self._index_tokens[subject])
            elif piece == TITLE_HISTORY:
                parts.extend(self._title_list(history))
            else:
                parts.append(self._texts[piece].words(query if piece == QUERY else subject))
        if template.response in (INDEX, HISTORY):
            response: np.ndarray = self._index_tokens[subject]
        else:
            response = self._texts[template.response].response(subject)
        row = np.concatenate([*parts, response]).astype(np.int64, copy=False)
        counts = np.zeros(len(row), dtype=bool)
        counts[len(row) - len(response) :] = True
        if template.task == "seqrec" and self.together:
            tail = counts[len(row) - len(response) - read * self._blocks.shape[1] : len(row) - len(response)]
            tail.reshape(read, -1)[1:, : self._num_levels] = True
        return row, counts

    def _reordered(self, history: np.ndarray, target: int, number: int, epoch: int) -> tuple[np.ndarray, int]:
        """A history and its target as an epoch reads them: in their order, or by chance in another one."""
        random = np.random.default_rng((self.seed, epoch, 3, number))
        if random.random() >= self.reorder:
            return history, target
        if not self.together:
            return random.permutation(history), target
        everything = random.permutation(np.append(history, target))
        return everything[:-1], int(everything[-1])

    def _title_list(self, history: np.ndarray) -> list[np.ndarray]:
        parts: list[np.ndarray] = []
        for item in history:
            parts += [self._texts[TITLE].words(int(item)), self._title_separator]
        return parts[:-1]


def _check_index(
    data: RecommendationData, tokenizer: PreTrainedTokenizerBase, index: SemanticIds, first_index_token: int
) -> None:
    if index.num_items != data.num_items:
        raise InputError(
            f"the index names {index.num_items} items and the data has {data.num_items}: it is that of another catalogue; "
            "run `cllm4rec index-items` on this data"
        )
    level, code = index.num_levels - 1, index.codebook_size - 1
    for word, token in (
        (semantic_id_token(0, 0), first_index_token),
        (semantic_id_token(level, code), first_index_token + level * index.codebook_size + code),
    ):
        if tokenizer.get_vocab().get(word) != token:
            raise InputError(
                f"first_index_token is {first_index_token}, so {word} should be token {token}, but the tokenizer has "
                f"{tokenizer.get_vocab().get(word)}: add the index tokens first (tokenization_lcrec.add_semantic_id_tokens)"
            )
