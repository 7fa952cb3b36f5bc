"""The corpus of the alignment (section III-C of LC-Rec, arXiv 2311.09049): documents of all tasks as token ids."""

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
from modeling_cllm4rec.lcrec.alignment_documents import Integers
from modeling_cllm4rec.lcrec.alignment_tasks import (
    ALIGNMENT_TASKS,
    BOTH,
    DESCRIPTION,
    HISTORY,
    INDEX,
    INTENTION_SLOTS,
    ITEM_TEXT_SLOTS,
    PREFERENCE,
    SLOTS,
    TITLE,
    TITLE_HISTORY,
    AlignmentTask,
    DocumentSource,
    checked_tasks,
)
from modeling_cllm4rec.lcrec.alignment_templates import (
    AlignmentTemplates,
    TokenizedTemplate,
    load_templates,
    separator_ids,
    title_separator_ids,
    tokenize_templates,
)
from modeling_cllm4rec.lcrec.intentions import Intentions, extract_intentions
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY, items_that_fit, semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.lcrec.token_texts import TokenTexts, encode_texts
from modeling_cllm4rec.tokenization.tokenization_lcrec import semantic_id_token

__all__ = ["AlignmentCorpus"]


class _DocumentTable(NamedTuple):
    """All documents of a corpus, column by column.

    Attributes:
        task: place in `ALIGNMENT_TASKS`.
        subject, begin, end: as in `Documents`.
        choice: row of the corpus' table of templates to draw from.
    """

    task: Integers
    subject: Integers
    begin: Integers
    end: Integers
    choice: Integers


class _Plan(NamedTuple):
    """The form of some documents in an epoch.

    Attributes:
        template: number of the template; query: number of the query.
        read: items (or titles) of the history that the document holds.
        length: tokens in all.
    """

    template: Integers
    query: Integers
    read: Integers
    length: Integers


class AlignmentCorpus:
    """Documents of all alignment tasks: an instruction, in one of the task's templates, and a response.

    The tasks and their documents are defined in `alignment_tasks`. Histories are those of the split `train`, in their order. A
    response of words is closed by the tokenizer's end token; a semantic ID is exactly its H tokens. The template of each
    document is drawn again for every epoch, from (seed, epoch) alone.

    Args:
        data: the prepared folder.
        tokenizer: the language model's, with the tokens of the semantic IDs added.
        semantic_ids: the items' codes.
        first_index_token: token id of code 0 of the first level.
        templates: the wording (default: the packaged one).
        tasks: task -> share of its documents that an epoch reads, in (0, 1], drawn again for every epoch.
        seed: start of all random numbers.
        max_history: most items of a history, the last ones; fewer where the context holds fewer whole items.
        context_length: tokens that the language model reads at once.
        max_text_tokens: cut texts after this number of tokens; None cuts nothing.
        seqrec: `"together"`: one pass over a history predicts each of its items from those before it (a history of more than
            max_history + 1 items is split into several documents that share one item, so that each item is a target once);
            `"apart"`: a document for each prefix, as in the paper. It concerns tasks that continue the history.
        reorder: probability that a document of such a task has its history in a random order in an epoch, with `"together"`
            its target too; the paper's is 0.
        on_missing_text: for items without a description, see `item_texts`: `"title-only"` leaves them to the title templates.
        intentions: queries and preferences (default: `extract_intentions`).
        cache_folder: folder of token ids to be reused; None writes nothing.

    Raises:
        InputError: an unknown task, a share outside (0, 1], a task without documents or templates, items without text, a text
            that does not fit the context, semantic IDs of another catalogue or tokenizer.

    Example:
        >>> corpus = AlignmentCorpus(data, tokenizer, semantic_ids, first, context_length=512)  # doctest: +SKIP
        >>> rows, counted = corpus.rows(corpus.documents(epoch=0)[:32], epoch=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        data: RecommendationData,
        tokenizer: PreTrainedTokenizerBase,
        semantic_ids: SemanticIds,
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
        _check_semantic_ids(data, tokenizer, semantic_ids, first_index_token)
        if seqrec not in ("together", "apart"):
            raise InputError(f"seqrec is {seqrec!r}; it must be 'together' or 'apart'")
        for name, value in (("max_history", max_history), ("max_text_tokens", max_text_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= reorder <= 1:
            raise InputError(f"reorder is {reorder}; it must lie between 0 and 1")
        self.seed, self.context_length, self.max_history, self.together = seed, context_length, max_history, seqrec == "together"
        self.reorder = reorder
        self.histories = data.histories("train")
        self._data = data
        self._tasks = [ALIGNMENT_TASKS[name] for name in self.tasks]
        self._templates = tokenize_templates(templates or load_templates(), self.tasks, tokenizer)
        self._num_levels = semantic_ids.num_levels
        self._separator = len(separator_ids(tokenizer))
        self._title_separator = np.array(title_separator_ids(tokenizer), dtype=np.int64)
        tokens = semantic_id_tokens(semantic_ids.codes, first_index_token, semantic_ids.codebook_size)
        marks = np.tile(np.array(separator_ids(tokenizer), dtype=np.int64), (len(tokens), 1))
        self._id_tokens, self._blocks = tokens, np.concatenate([tokens, marks], axis=1)
        self._read_texts(tokenizer, on_missing_text, intentions, max_text_tokens, cache_folder)
        self._history_limits = {
            task.name: self._longest_continued_history(task) if task.continues_history else max_history for task in self._tasks
        }
        self._choices: list[Integers] = []
        self._documents = self._list_documents()
        self._choice_counts = np.array([len(templates) for templates in self._choices])
        self._choice_table = np.zeros((len(self._choices), int(self._choice_counts.max())), dtype=np.int64)
        for row, numbers in zip(self._choice_table, self._choices, strict=True):
            row[: len(numbers)] = numbers
        self._counts = np.bincount(self._documents.task, minlength=len(ALIGNMENT_TASKS))
        self._drawn: tuple[int, np.ndarray] | None = None
        self._check_lengths()

    def __len__(self) -> int:
        return len(self._documents.task)

    # ---- Texts and documents ----

    def _read_texts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_missing_text: OnMissingText,
        intentions: Intentions | None,
        max_text_tokens: int | None,
        cache_folder: str | Path | None,
    ) -> None:
        """Encode the texts that the tasks' slots need; the queries of one item follow one another."""
        data = self._data

        def encode(texts: list[str]) -> TokenTexts:
            return encode_texts(texts, tokenizer, max_text_tokens, cache_folder)

        self._texts: dict[str, TokenTexts] = {}
        self._has_text: dict[str, npt.NDArray[np.bool_]] = {}
        slots = frozenset[str]().union(*(task.slots for task in self._tasks))
        if slots & ITEM_TEXT_SLOTS:
            texts = item_texts(data.items, (TITLE, DESCRIPTION), on_missing_text)
            pairs = list(zip(texts[TITLE], texts[DESCRIPTION], strict=True))
            described = np.array([bool(text) for text in texts[DESCRIPTION]], dtype=bool)
            self._has_text |= {DESCRIPTION: described, BOTH: described}
            whole = [f"{title}{'' if title[-1] in '.!?' else '.'} {text}".strip() for title, text in pairs]
            self._texts = {TITLE: encode(texts[TITLE]), DESCRIPTION: encode(texts[DESCRIPTION]), BOTH: encode(whole)}
            before = self._texts[TITLE].lengths[self.histories.items] + len(self._title_separator)
            self._title_tokens_before = np.concatenate([[0], np.cumsum(before)])
        self.intentions: Intentions | None = None
        if slots & INTENTION_SLOTS:
            made = intentions or extract_intentions(data, self.seed, self.max_history)
            if len(made.queries) != data.num_items or not all(made.queries) or len(made.preferences) != data.num_users:
                raise InputError(
                    f"intentions: there must be one query or more for each of {data.num_items} items and a text for each of "
                    f"{data.num_users} users, got {len(made.queries)} and {len(made.preferences)}; make them from this data"
                )
            self.intentions = made
            self._texts[QUERY] = encode([text for texts in made.queries for text in texts])
            self._texts[PREFERENCE] = encode(made.preferences)
            self._has_text[PREFERENCE] = self._texts[PREFERENCE].lengths > 0
            self._queries_of = np.array([len(texts) for texts in made.queries], dtype=np.int64)
            self._first_query = np.cumsum(self._queries_of) - self._queries_of
            parts = np.split(self._texts[QUERY].lengths, self._first_query[1:])
            self._longest_query = self._first_query + np.array([part.argmax() for part in parts])
        self._own_texts = {
            task.name: {slot: encode(texts) for slot, texts in _own_texts(task, data).items()} for task in self._tasks
        }

    def _texts_of(self, task: AlignmentTask, slot: str) -> TokenTexts:
        """Return the texts of a slot: the task's own, or those that all tasks share."""
        own = self._own_texts[task.name]
        return own[slot] if slot in own else self._texts[slot]

    def _longest_continued_history(self, task: AlignmentTask) -> int:
        """Return the most items of a history that fit with the task's longest template and the target."""
        words = max(template.words for template in self._templates if template.task is task)
        room = self.context_length - words - self._num_levels
        fit = int(items_that_fit(room, self._num_levels, self._separator, closed=True))
        if fit < 1:
            raise InputError(
                f"the longest template of {task.name} has {words} tokens, and with the semantic IDs of two items it does not fit "
                f"the context of {self.context_length}: shorten it, or use a backbone with a longer context"
            )
        return min(self.max_history, fit)

    def _list_documents(self) -> _DocumentTable:
        parts: list[_DocumentTable] = []
        places = {name: place for place, name in enumerate(ALIGNMENT_TASKS)}
        for task in self._tasks:
            source = DocumentSource(self.histories, self._data.num_items, self._history_limits[task.name], self.together)
            found = task.documents(source)
            has_text = self._has_text | {slot: texts.lengths > 0 for slot, texts in self._own_texts[task.name].items()}
            suits = np.stack([task.suits(kind, found, has_text) for kind in task.template_kinds])  # (kinds, documents)
            kept = suits.any(axis=0)
            if not kept.any():
                raise InputError(
                    f"the task {task.name} has no documents: no user has two training items, or no text is there; "
                    "leave it out of tasks"
                )
            subject, begin, end = (column[kept] for column in found)
            choice = self._choices_of(task, suits[:, kept])
            parts.append(_DocumentTable(np.full(len(subject), places[task.name]), subject, begin, end, choice))
        return _DocumentTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _choices_of(self, task: AlignmentTask, suits: npt.NDArray[np.bool_]) -> Integers:
        """Add the sets of templates that documents may be worded by to `_choices`.

        Args:
            suits: (kinds, documents).

        Returns:
            (documents,) number of each document's set.
        """
        kinds = list(task.template_kinds)
        kind_of = [
            (number, kinds.index(template.kind)) for number, template in enumerate(self._templates) if template.task is task
        ]
        # Few of the 2^kinds sets occur, so each is kept once and documents refer to it.
        masks, choice = np.unique((1 << np.arange(len(kinds))) @ suits, return_inverse=True)
        first = len(self._choices)
        self._choices += [np.array([number for number, kind in kind_of if mask >> kind & 1]) for mask in masks.tolist()]
        return first + choice

    def _check_lengths(self) -> None:
        """Check that every document fits, whichever of its templates and queries is drawn."""
        longest: dict[tuple[str, str], int] = {}
        for number, template in enumerate(self._templates):
            known = longest.setdefault((template.task.name, template.kind), number)
            if template.words > self._templates[known].words:
                longest[template.task.name, template.kind] = number
        for number in longest.values():
            template, documents = self._templates[number], self._documents
            numbers = np.flatnonzero(np.array([number in choices for choices in self._choices])[documents.choice])
            has_query = QUERY in template.slots or template.response == QUERY
            query = self._longest_query[documents.subject[numbers]] if has_query else np.zeros_like(numbers)
            read, length = self._sizes(template, numbers, query)
            bad = numbers[(read < 1) & bool(template.slots & {ITEMS, TITLE_HISTORY}) | (length > self.context_length)]
            if len(bad):
                what = f"{template.task.subject}_id"
                ids = (self._data.users if what == "user_id" else self._data.items)[what]
                named = [ids[int(subject)].as_py() for subject in documents.subject[bad[:5]]]
                room = (self.context_length - template.words - 2 * self._num_levels) // 2
                raise InputError(
                    f"{len(bad)} documents of {template.task.name} do not fit the context of {self.context_length} tokens, such "
                    f"as those of {what} {named}: their texts are too long; set max_text_tokens, to about {max(1, room)}, to cut "
                    "texts there"
                )

    # ---- The documents of an epoch ----

    def documents(self, epoch: int) -> Integers:
        """Return the numbers of this epoch's documents, ascending: each task's share, drawn from (seed, epoch)."""
        chosen, start = [], 0
        for number, (task, count) in enumerate(zip(ALIGNMENT_TASKS, self._counts.tolist(), strict=False)):
            if task in self.tasks:
                share = max(1, round(self.tasks[task] * count))
                order = np.random.default_rng((self.seed, epoch, 2, number)).permutation(count)
                chosen.append(start + np.sort(order[:share]))
            start += count
        return np.concatenate(chosen)

    def tasks_of(self, numbers: Sequence[int] | Integers) -> npt.NDArray[np.str_]:
        """Return the names of the documents' tasks: (n,)."""
        return np.array(list(ALIGNMENT_TASKS))[self._documents.task[np.asarray(numbers)]]

    def lengths(self, numbers: Sequence[int] | Integers, epoch: int) -> Integers:
        """Return the tokens of documents in an epoch, which depend on the templates drawn: (n,)."""
        return self._plan(np.asarray(numbers), epoch).length

    def rows(self, numbers: Sequence[int] | Integers, epoch: int) -> tuple[list[Integers], list[npt.NDArray[np.bool_]]]:
        """Return the token ids of documents in an epoch, and the tokens that the loss counts.

        Returns:
            Token ids of each document, and for each of its tokens True where it is to be predicted from those before it: the
            response, and in a seqrec document read together also the semantic IDs of all items of the history but the first.
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
        # Two draws for each document of the corpus, read or not: a document's template then depends on (seed, epoch) and its
        # number alone, not on the batch or the process that reads it.
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, np.random.default_rng((self.seed, epoch, 1)).random((len(self), 2)))
        draws = self._drawn[1][numbers]
        choice = self._documents.choice[numbers]
        template = self._choice_table[choice, (draws[:, 0] * self._choice_counts[choice]).astype(np.int64)]
        query, read, length = (np.zeros(len(numbers), dtype=np.int64) for _ in range(3))
        for number in np.unique(template):
            places = np.flatnonzero(template == number)
            drawn = self._templates[number]
            if QUERY in drawn.slots or drawn.response == QUERY:
                items = self._documents.subject[numbers[places]]
                query[places] = self._first_query[items] + (draws[places, 1] * self._queries_of[items]).astype(np.int64)
            read[places], length[places] = self._sizes(drawn, numbers[places], query[places])
        return _Plan(template, query, read, length)

    def _sizes(self, template: TokenizedTemplate, numbers: Integers, query: Integers) -> tuple[Integers, Integers]:
        """Return the items of the history that documents in one template hold, and their tokens: (n,) each."""
        task, levels, separator = template.task, self._num_levels, self._separator
        subject, begin, end = (column[numbers] for column in self._documents[1:4])
        words = np.full(len(numbers), template.words)
        for slot in template.slots - {ITEMS, TITLE_HISTORY}:
            words += levels if slot == INDEX else self._texts_of(task, slot).lengths[query if slot == QUERY else subject]
        if template.response in (INDEX, HISTORY):
            words += levels
        else:
            texts, row = self._texts_of(task, template.response), query if template.response == QUERY else subject
            words += texts.lengths[row] + texts.ends[row]
        room = self.context_length - words
        if ITEMS in template.slots:
            closed = task.continues_history
            most = self._history_limits[task.name]
            read = np.minimum(np.minimum(end - begin, most), items_that_fit(room, levels, separator, closed))
            return read, words + read * (levels + separator) - (0 if closed else separator)
        if TITLE_HISTORY in template.slots:
            # Titles differ in length, so the first one that fits is found by a search in the running sum of their tokens.
            before, mark = self._title_tokens_before, len(self._title_separator)
            start = np.searchsorted(before, before[end] - mark - room)
            start = np.maximum(np.maximum(start, begin), end - self.max_history)
            return end - start, words + before[end] - before[np.minimum(start, end)] - mark
        return np.zeros(len(numbers), dtype=np.int64), words

    def _row(
        self, number: int, template: TokenizedTemplate, query: int, read: int, epoch: int
    ) -> tuple[Integers, npt.NDArray[np.bool_]]:
        task = template.task
        subject, end = int(self._documents.subject[number]), int(self._documents.end[number])
        history = self.histories.items[end - read : end]
        if task.continues_history and self.reorder:
            history, subject = self._reordered(history, subject, number, epoch)
        parts: list[np.ndarray] = []
        for segment in template.segments:
            if not isinstance(segment, str):
                parts.append(segment)
            elif segment == ITEMS:
                blocks = self._blocks[history].reshape(-1)
                parts.append(blocks if task.continues_history else blocks[: len(blocks) - self._separator])
            elif segment == INDEX:
                parts.append(self._id_tokens[subject])
            elif segment == TITLE_HISTORY:
                parts.extend(self._title_list(history))
            else:
                parts.append(self._texts_of(task, segment).words(query if segment == QUERY else subject))
        if template.response in (INDEX, HISTORY):
            response: np.ndarray = self._id_tokens[subject]
        else:
            response = self._texts_of(task, template.response).response(query if template.response == QUERY else subject)
        row = np.concatenate([*parts, response]).astype(np.int64, copy=False)
        counts = np.zeros(len(row), dtype=bool)
        counts[len(row) - len(response) :] = True
        if task.continues_history and self.together:
            tail = counts[len(row) - len(response) - read * self._blocks.shape[1] : len(row) - len(response)]
            tail.reshape(read, -1)[1:, : self._num_levels] = True  # separators and the first item are given, not predicted
        return row, counts

    def _reordered(self, history: np.ndarray, target: int, number: int, epoch: int) -> tuple[np.ndarray, int]:
        """Return a history and its target in their order, or by chance in another one."""
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


def _own_texts(task: AlignmentTask, data: RecommendationData) -> dict[str, list[str]]:
    """Return the texts of a task's own slots, checked."""
    texts, slots = task.texts(data), task.slots - SLOTS
    if set(texts) != slots:
        raise InputError(f"alignment task {task.name}: texts() fills {sorted(texts)}; its slots need {sorted(slots)}")
    count = data.num_users if task.subject == "user" else data.num_items
    for slot, column in texts.items():
        if slot == ITEMS or len(column) != count:
            raise InputError(
                f"alignment task {task.name}: texts() gives {len(column)} texts for {slot!r}; it must give one for each of "
                f"{count} {task.subject}s, and {ITEMS!r} is no name for a slot"
            )
    return {slot: [text or "" for text in column] for slot, column in texts.items()}


def _check_semantic_ids(
    data: RecommendationData, tokenizer: PreTrainedTokenizerBase, semantic_ids: SemanticIds, first_index_token: int
) -> None:
    if semantic_ids.num_items != data.num_items:
        raise InputError(
            f"semantic_ids has {semantic_ids.num_items} items and the data {data.num_items}: it belongs to another catalogue; "
            "run `cllm4rec index-items` on this data"
        )
    level, code = semantic_ids.num_levels - 1, semantic_ids.codebook_size - 1
    for word, token in (
        (semantic_id_token(0, 0), first_index_token),
        (semantic_id_token(level, code), first_index_token + level * semantic_ids.codebook_size + code),
    ):
        if tokenizer.get_vocab().get(word) != token:
            raise InputError(
                f"first_index_token is {first_index_token}, so {word} should be token {token}, but the tokenizer has "
                f"{tokenizer.get_vocab().get(word)}: add the tokens of semantic IDs first "
                "(tokenization_lcrec.add_semantic_id_tokens)"
            )
