"""The corpus of the alignment (section III-C of LC-Rec, arXiv 2311.09049): documents of all tasks as token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.ragged import RaggedRows, span_positions
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import OnMissingText, clean_text, item_texts
from modeling_cllm4rec.lcrec.alignment_documents import Documents, Integers
from modeling_cllm4rec.lcrec.alignment_rows import AlignmentRows, WordedDocuments
from modeling_cllm4rec.lcrec.alignment_tasks import (
    ALIGNMENT_TASKS,
    BOTH,
    DESCRIPTION,
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
    load_templates,
    separator_ids,
    title_separator_ids,
    tokenize_templates,
)
from modeling_cllm4rec.lcrec.intentions import Intentions, extract_intentions
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY, check_index_tokens, items_that_fit, semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.lcrec.token_texts import TextGroups, TokenTexts, encode_texts, text_groups

__all__ = ["AlignmentCorpus"]

logger = logging.getLogger(__name__)


class _DocumentTable(NamedTuple):
    """All documents of a corpus, column by column.

    Attributes:
        task: place in `ALIGNMENT_TASKS`.
        subject, begin, end: as in `Documents`.
        choice: row of the corpus' table of templates to draw from.
        user: user_index, -1 for an item without a history.
    """

    task: Integers
    subject: Integers
    begin: Integers
    end: Integers
    choice: Integers
    user: Integers


class _Plan(NamedTuple):
    """The form of some documents in an epoch.

    Attributes:
        template: number of the template; query, preference: number of the text.
        read: items (or titles) of the history that the document holds.
        length: tokens in all.
    """

    template: Integers
    query: Integers
    preference: Integers
    read: Integers
    length: Integers


class AlignmentCorpus:
    """Documents of all alignment tasks: an instruction, in one of the task's templates, and a response.

    The tasks and their documents are defined in `alignment_tasks`. Histories are those of the split `train`, in their order. A
    response of words is closed by the tokenizer's end token; a semantic ID is exactly its H tokens. The template of each
    document, its query and its preference are drawn again for every epoch, from (seed, epoch) alone. A task without documents is
    left out, with a warning.

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
        intentions: queries and preferences (default: `extract_intentions`). A document with a history has the user's own
            intention for the target, where there is one.
        cache_folder: folder of token ids to be reused; None writes nothing.

    Raises:
        InputError: an unknown task, a share outside (0, 1], no task with documents, a task without templates, some items without
            text, a text that does not fit the context, semantic IDs of another catalogue or tokenizer.

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
        self._tasks = self._tasks_with_texts(intentions is not None)
        self._templates = tokenize_templates(templates or load_templates(), self.tasks, tokenizer)
        self._num_levels = semantic_ids.num_levels
        self._separator = separator_ids(tokenizer)
        title_separator = title_separator_ids(tokenizer)
        self._read_texts(tokenizer, len(title_separator), on_missing_text, intentions, max_text_tokens, cache_folder)
        self._history_limits = {
            task.name: self._longest_continued_history(task) if task.continues_history else max_history for task in self._tasks
        }
        self._has_slot = {
            slot: np.array([slot in template.slots or template.response == slot for template in self._templates])
            for slot in (QUERY, PREFERENCE)
        }
        self._rows = AlignmentRows(
            self._templates,
            self._texts_of,
            semantic_id_tokens(semantic_ids.codes, first_index_token, semantic_ids.codebook_size),
            self._separator,
            title_separator,
            self._history_limits,
            max_titles=max_history,
            context_length=context_length,
        )
        self._choices: list[Integers] = []
        self._documents = self._list_documents()
        self._drawn = self._drawn_texts()
        del self._texts, self._own_texts, self._groups  # `_rows` holds their tokens
        self._choice_counts = np.array([len(templates) for templates in self._choices])
        self._choice_table = np.zeros((len(self._choices), int(self._choice_counts.max())), dtype=np.int64)
        for row, numbers in zip(self._choice_table, self._choices, strict=True):
            row[: len(numbers)] = numbers
        self._counts = np.bincount(self._documents.task, minlength=len(ALIGNMENT_TASKS))
        self._planned: tuple[int, _Plan] | None = None
        self._check_lengths()

    def __len__(self) -> int:
        return len(self._documents.task)

    # ---- Texts and documents ----

    def _tasks_with_texts(self, has_intentions: bool) -> list[AlignmentTask]:
        """Return the tasks, without those that need item texts where no item has a title."""
        items, tasks = self._data.items, [ALIGNMENT_TASKS[name] for name in self.tasks]
        if TITLE in items.column_names and any(clean_text(title) for title in text_column(items, TITLE)):
            return tasks
        needed = ITEM_TEXT_SLOTS if has_intentions else ITEM_TEXT_SLOTS | INTENTION_SLOTS
        for task in tasks:
            if task.slots & needed:
                self._leave_out(task.name, "no item has a title; add titles with `cllm4rec prepare`")
        return [task for task in tasks if task.name in self.tasks]

    def _leave_out(self, name: str, reason: str) -> None:
        """Remove a task without documents.

        Raises:
            InputError: it was the last one.
        """
        del self.tasks[name]
        if not self.tasks:
            raise InputError(f"tasks: {name} has no documents, and no task is left: {reason}")
        logger.warning("tasks: %s is left out, because it has no documents: %s", name, reason)

    def _read_texts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        title_mark: int,
        on_missing_text: OnMissingText,
        intentions: Intentions | None,
        max_text_tokens: int | None,
        cache_folder: str | Path | None,
    ) -> None:
        """Encode the texts that the tasks' slots need; the queries of one item follow one another.

        Args:
            title_mark: tokens between two titles.
        """
        data = self._data

        def encode(texts: list[str]) -> TokenTexts:
            return encode_texts(texts, tokenizer, max_text_tokens, cache_folder)

        self._texts: dict[str, TokenTexts] = {}
        self._titles_before = np.zeros(1, dtype=np.int64)
        self._has_text: dict[str, npt.NDArray[np.bool_]] = {}
        slots = frozenset[str]().union(*(task.slots for task in self._tasks))
        if slots & ITEM_TEXT_SLOTS:
            texts = item_texts(data.items, (TITLE, DESCRIPTION), on_missing_text)
            pairs = list(zip(texts[TITLE], texts[DESCRIPTION], strict=True))
            described = np.array([bool(text) for text in texts[DESCRIPTION]], dtype=bool)
            self._has_text |= {DESCRIPTION: described, BOTH: described}
            whole = [f"{title}{'' if title[-1] in '.!?' else '.'} {text}".strip() for title, text in pairs]
            self._texts = {TITLE: encode(texts[TITLE]), DESCRIPTION: encode(texts[DESCRIPTION]), BOTH: encode(whole)}
            before = self._texts[TITLE].lengths[self.histories.items] + title_mark
            self._titles_before = np.concatenate([[0], np.cumsum(before)])
        self.intentions: Intentions | None = None
        self._groups: dict[str, TextGroups] = {}
        if slots & INTENTION_SLOTS:
            made = intentions or extract_intentions(data, self.seed, self.max_history)
            users = (len(made.preferences), len(made.user_queries))
            if len(made.queries) != data.num_items or not all(made.queries) or users != (data.num_users, data.num_users):
                raise InputError(
                    f"intentions: there must be one query or more for each of {data.num_items} items, and preferences and "
                    f"queries for each of {data.num_users} users, got {len(made.queries)}, {users[0]} and {users[1]}; make them "
                    "from this data"
                )
            self.intentions = made
            queries, preferences = [*made.queries, *made.user_queries], made.preferences
            for slot, groups in ((QUERY, queries), (PREFERENCE, preferences)):
                self._texts[slot] = encode([text for texts in groups for text in texts])
                self._groups[slot] = text_groups(groups, self._texts[slot].lengths)
            self._has_text[PREFERENCE] = self._groups[PREFERENCE].size > 0
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
        fit = int(items_that_fit(room, self._num_levels, len(self._separator), closed=True))
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
            user = self._users_of(task, found)
            suits = self._suits(task, found, user)
            kept: npt.NDArray[np.bool_] = np.any(suits, axis=0)
            if not kept.any():
                reason = f"none of {len(kept)} has all texts of its templates"
                self._leave_out(task.name, reason if len(kept) else "no user has two training items")
                continue
            subject, begin, end = (column[kept] for column in found)
            choice = self._choices_of(task, suits[:, kept])
            parts.append(_DocumentTable(np.full(len(subject), places[task.name]), subject, begin, end, choice, user[kept]))
        return _DocumentTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _users_of(self, task: AlignmentTask, documents: Documents) -> Integers:
        """Return the user_index of documents, -1 for an item without a history."""
        if task.subject == "user":
            return documents.subject
        user = np.searchsorted(self.histories.indptr, documents.end, side="right") - 1
        return np.where(documents.end > documents.begin, user, -1)

    def _suits(self, task: AlignmentTask, documents: Documents, user: Integers) -> npt.NDArray[np.bool_]:
        """Return which kinds of templates suit documents: (kinds, documents)."""
        has_text = self._has_text | {slot: texts.lengths > 0 for slot, texts in self._own_texts[task.name].items()}
        has_preference = has_text.get(PREFERENCE)
        if task.subject == "item":
            has_text.pop(PREFERENCE, None)
        suits = np.stack([task.suits(kind, documents, has_text) for kind in task.template_kinds])
        for kind, (placeholders, response) in zip(suits, task.template_kinds.values(), strict=True):
            if has_preference is not None and PREFERENCE in (*placeholders, response):
                kind &= (user >= 0) & has_preference[user]
        return suits

    def _drawn_texts(self) -> dict[str, TextGroups]:
        """Return slot -> the texts that each document's query or preference is drawn from."""
        if not self._groups:
            return {}
        subject, user, end = self._documents.subject, self._documents.user, self._documents.end
        # A user's own intentions are about the last training item. They come after those of the items.
        own = self._data.num_items + user
        is_last = (user >= 0) & (end == self.histories.indptr[user + 1] - 1)
        about_items = np.array([task.subject == "item" for task in ALIGNMENT_TASKS.values()])[self._documents.task]
        has_own = about_items & is_last & (self._groups[QUERY].size[np.where(is_last, own, 0)] > 0)
        asked = np.where(has_own, own, np.where(about_items, subject, 0))
        return {QUERY: self._groups[QUERY].take(asked), PREFERENCE: self._groups[PREFERENCE].take(np.maximum(user, 0))}

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
            texts = [
                self._drawn[slot].longest[numbers] if has_slot[number] else np.zeros_like(numbers)
                for slot, has_slot in self._has_slot.items()
            ]
            worded = self._worded(numbers, np.full(len(numbers), number), *texts)
            read, length = self._rows.sizes(worded, self._titles_before)
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

    def subjects_of(self, numbers: Sequence[int] | Integers) -> tuple[Integers, Integers]:
        """Return the user_index and the item_index that documents are about: (n,) each, -1 where there is none."""
        numbers = np.asarray(numbers)
        about_items = np.array([task.subject == "item" for task in ALIGNMENT_TASKS.values()])[self._documents.task[numbers]]
        return self._documents.user[numbers], np.where(about_items, self._documents.subject[numbers], -1)

    def lengths(self, numbers: Sequence[int] | Integers, epoch: int) -> Integers:
        """Return the tokens of documents in an epoch, which depend on the templates drawn: (n,)."""
        return self._plan(np.asarray(numbers), epoch).length

    def rows(self, numbers: Sequence[int] | Integers, epoch: int) -> tuple[RaggedRows, RaggedRows]:
        """Return the token ids of documents in an epoch, and the tokens that the loss counts.

        Returns:
            Token ids of each document, and for each of its tokens True where it is to be predicted from those before it: the
            response, and in a seqrec document read together also the semantic IDs of all items of the history but the first.
        """
        numbers = np.asarray(numbers)
        plan = self._plan(numbers, epoch)
        documents = self._worded(numbers, plan.template, plan.query, plan.preference)
        history = RaggedRows.of_lengths(
            self.histories.items[span_positions(documents.end - plan.read, plan.read)].astype(np.int64), plan.read
        )
        if self.reorder:
            documents = self._reorder(numbers, documents, history, epoch)
        return self._rows.rows(documents, history, self.together)

    def _worded(self, numbers: Integers, template: Integers, query: Integers, preference: Integers) -> WordedDocuments:
        return WordedDocuments(template, query, preference, *(column[numbers] for column in self._documents[1:4]))

    def _plan(self, numbers: Integers, epoch: int) -> _Plan:
        # All documents of the corpus are planned together, once an epoch: a document's template then depends on (seed, epoch) and
        # its number alone, not on the batch or the process that reads it.
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan_all(epoch))
        return _Plan(*(column[numbers] for column in self._planned[1]))

    def _plan_all(self, epoch: int) -> _Plan:
        draws = np.random.default_rng((self.seed, epoch, 1)).random((len(self), 2))
        choice = self._documents.choice
        template = self._choice_table[choice, (draws[:, 0] * self._choice_counts[choice]).astype(np.int64)]
        chosen = {slot: np.zeros(len(self), dtype=np.int64) for slot in (QUERY, PREFERENCE)}
        if self._drawn:
            shares = {QUERY: draws[:, 1], PREFERENCE: np.random.default_rng((self.seed, epoch, 4)).random(len(self))}
            for slot, numbers in chosen.items():
                asked = np.flatnonzero(self._has_slot[slot][template])
                numbers[asked] = self._drawn[slot].take(asked).draw(shares[slot][asked])
        documents = self._worded(np.arange(len(self)), template, chosen[QUERY], chosen[PREFERENCE])
        return _Plan(template, chosen[QUERY], chosen[PREFERENCE], *self._rows.sizes(documents, self._titles_before))

    def _reorder(self, numbers: Integers, documents: WordedDocuments, history: RaggedRows, epoch: int) -> WordedDocuments:
        """Put histories that a response continues in another order by chance, in place, and return the documents."""
        subject = documents.subject.copy()
        for place, (number, template) in enumerate(zip(numbers.tolist(), documents.template.tolist(), strict=True)):
            if self._templates[template].task.continues_history:
                history[place][:], subject[place] = self._reordered(history[place], int(subject[place]), number, epoch)
        return documents._replace(subject=subject)

    def _reordered(self, history: np.ndarray, target: int, number: int, epoch: int) -> tuple[np.ndarray, int]:
        """Return a history and its target in their order, or by chance in another one."""
        random = np.random.default_rng((self.seed, epoch, 3, number))
        if random.random() >= self.reorder:
            return history, target
        if not self.together:
            return random.permutation(history), target
        everything = random.permutation(np.append(history, target))
        return everything[:-1], int(everything[-1])


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
    check_index_tokens(tokenizer.get_vocab(), first_index_token, semantic_ids.num_levels, semantic_ids.codebook_size)
