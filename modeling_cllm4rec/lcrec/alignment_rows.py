"""Token ids of alignment documents: spans of one array of tokens, joined for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from modeling_cllm4rec.core.ragged import RaggedRows, joined_spans, span_positions
from modeling_cllm4rec.lcrec.alignment_documents import Integers
from modeling_cllm4rec.lcrec.alignment_tasks import HISTORY, INDEX, PREFERENCE, TITLE, TITLE_HISTORY, AlignmentTask
from modeling_cllm4rec.lcrec.alignment_templates import TokenizedTemplate
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY
from modeling_cllm4rec.lcrec.token_texts import TokenTexts

DOCUMENTS_AT_ONCE = 65_536
"""Documents whose lengths are computed together."""

NO_LIST, ITEM_LIST, TITLE_LIST = range(3)
"""Kinds of a cell: a span of its own, or a history of semantic IDs or of titles."""
NO_OWNER, SUBJECT, ASKED, PREFERRED = range(4)
"""Numbers of a document that tell which entry of a source fills a cell."""


class WordedDocuments(NamedTuple):
    """Documents and the templates that word them, (n,) each.

    Attributes:
        template: number of the template; query, preference: number of the text, where there is one.
        subject: item_index of the target, or user_index.
        begin, end: the history is items[begin:end] of all histories.
    """

    template: Integers
    query: Integers
    preference: Integers
    subject: Integers
    begin: Integers
    end: Integers


class AlignmentRows:
    """The rows of documents in any of some templates.

    A document is a row of cells: the segments of its template, padded to those of the longest one, and the response. Each cell is
    a span of one array of tokens, or a list of such spans, one for each item of the history with the mark behind it. All spans
    that may fill a cell are the entries of one table, source after source, so that a batch looks up all its cells at once.

    Args:
        templates: all of them.
        texts_of: task and slot -> its texts, one for each subject, query or preference.
        id_tokens: (J, H) tokens of the semantic IDs of all items.
        separator, title_separator: tokens between the semantic IDs and between the titles of a history.
        limits: task -> most items of a history.
        max_titles: most titles of a history.
        context_length: tokens that fit.
    """

    def __init__(
        self,
        templates: list[TokenizedTemplate],
        texts_of: Callable[[AlignmentTask, str], TokenTexts],
        id_tokens: Integers,
        separator: list[int],
        title_separator: list[int],
        limits: Mapping[str, int],
        max_titles: int,
        context_length: int,
    ) -> None:
        self.levels, self.separator = id_tokens.shape[1], len(separator)
        self.max_titles, self.context = max_titles, context_length
        self.width = self.levels + self.separator
        shape = (len(templates), 1 + max(len(template.segments) for template in templates))
        self._entry, self._owner, self._list = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        spans = _Spans()
        blocks = np.concatenate([id_tokens, np.tile(separator, (len(id_tokens), 1))], axis=1)
        self._first_block = spans.add_tokens(blocks.reshape(-1))
        first_tokens = self._first_block + self.width * np.arange(len(blocks))
        of_items = spans.add(first_tokens, np.full(len(blocks), self.levels))
        self._title_begin = self._title_length = np.zeros(0, dtype=np.int64)
        for number, template in enumerate(templates):
            slots = [*template.segments, INDEX if template.response == HISTORY else template.response]
            for place, slot in zip([*range(len(template.segments)), -1], slots, strict=True):
                cell = number, place
                if not isinstance(slot, str):
                    self._entry[cell] = spans.add([spans.add_tokens(slot)], [len(slot)])
                elif slot == ITEMS:
                    self._list[cell] = ITEM_LIST
                elif slot == TITLE_HISTORY:
                    self._list[cell] = TITLE_LIST
                    if not len(self._title_begin):
                        titles = texts_of(template.task, TITLE)
                        self._title_begin, self._title_length = spans.add_marked(titles, title_separator)
                elif slot == INDEX:
                    self._entry[cell], self._owner[cell] = of_items, SUBJECT
                else:  # only a response has the end token of its text
                    self._entry[cell] = spans.add_texts(texts_of(template.task, slot), ends=place == -1)
                    self._owner[cell] = {QUERY: ASKED, PREFERENCE: PREFERRED}.get(slot, SUBJECT)
        self.pool, self._begin, self._length = spans.joined()
        self._is_mark = np.zeros(len(self.pool), dtype=bool)
        is_mark = np.tile(np.arange(self.width) >= self.levels, len(blocks))
        self._is_mark[self._first_block : self._first_block + blocks.size] = is_mark
        self._is_list = self._list > NO_LIST
        self._has_items, self._has_titles = ((self._list == kind).any(axis=1) for kind in (ITEM_LIST, TITLE_LIST))
        self._closed = np.array([template.task.continues_history for template in templates])
        self._limit = np.array([limits[template.task.name] for template in templates])
        # An open list has no mark behind its last item.
        self._title_mark_length = len(title_separator)
        open_mark = np.where(self._has_titles, self._title_mark_length, self.separator)
        self._open_mark = np.where(self._closed, 0, open_mark)

    def sizes(self, documents: WordedDocuments, titles_before: Integers) -> tuple[Integers, Integers]:
        """Return the items (or titles) of the history that documents hold, and their tokens: (n,) each.

        Args:
            titles_before: (interactions + 1,) tokens of the titles, each with a separator, of all interactions before one.
        """
        count = len(documents.template)
        read, length = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for start in range(0, count, DOCUMENTS_AT_ONCE):
            part = slice(start, start + DOCUMENTS_AT_ONCE)
            read[part], length[part] = self._sizes(WordedDocuments(*(column[part] for column in documents)), titles_before)
        return read, length

    def _sizes(self, documents: WordedDocuments, titles_before: Integers) -> tuple[Integers, Integers]:
        template, *_, begin, end = documents
        words = self._cells(documents)[1].sum(axis=1)
        room, read, length = self.context - words, np.zeros_like(words), words.copy()
        has_items, has_titles = self._has_items[template], self._has_titles[template]
        if has_items.any():
            open_list = self._open_mark[template]
            fit = (room + open_list) // self.width
            items = np.minimum(np.minimum(end - begin, self._limit[template]), fit)
            read = np.where(has_items, items, 0)
            length = np.where(has_items, words + items * self.width - open_list, words)
        if has_titles.any():
            # Titles differ in length, so the first one that fits is found by a search in the running sum of their tokens.
            mark, (begin, end, room) = self._title_mark_length, (column[has_titles] for column in (begin, end, room))
            start = np.searchsorted(titles_before, titles_before[end] - mark - room)
            start = np.maximum(np.maximum(start, begin), end - self.max_titles)
            read[has_titles] = end - start
            length[has_titles] += titles_before[end] - titles_before[np.minimum(start, end)] - mark
        return read, length

    def _cells(self, documents: WordedDocuments) -> tuple[Integers, Integers]:
        """Return (n, cells) first tokens and numbers of tokens; 0 for the lists of a history."""
        template, query, preference, subject, *_ = documents
        owners = np.zeros((4, len(template)), dtype=np.int64)
        owners[SUBJECT], owners[ASKED], owners[PREFERRED] = subject, query, preference
        entry = self._entry[template] + owners[self._owner[template], np.arange(len(template))[:, None]]
        return self._begin[entry], self._length[entry]

    def rows(self, documents: WordedDocuments, history: RaggedRows, count_histories: bool) -> tuple[RaggedRows, RaggedRows]:
        """Return the token ids of documents, and the tokens that the loss counts.

        Args:
            history: item indices of each document's history, those that it reads; none where the template has no list.
            count_histories: count also the items of a history that the response continues, except the first.
        """
        template, read = documents.template, history.lengths
        start, length = self._cells(documents)
        counted = np.zeros(start.shape, dtype=bool)
        counted[:, -1] = True
        # The cell of a list becomes the spans of its items, none where the history is empty.
        is_list, spans = self._is_list[template], np.ones(start.shape, dtype=np.int64)
        spans[is_list] = read[self._has_items[template] | self._has_titles[template]]
        repeats = spans.reshape(-1)
        in_list = np.repeat(is_list.reshape(-1), repeats)
        starts, lengths, counts = (np.repeat(column.reshape(-1), repeats) for column in (start, length, counted))
        starts[in_list], lengths[in_list] = self._list_spans(template, history)
        closed = self._closed[template]
        if count_histories and closed.any():
            items = np.repeat(closed, read)
            items[history.indptr[:-1][read > 0]] = False  # the first item is given, not predicted, as marks are
            counts[in_list] = items
        positions, ends = span_positions(starts, lengths), lengths.cumsum()
        counts = np.repeat(counts, lengths)
        counts &= ~self._is_mark[positions]
        indptr = np.concatenate([[0], ends[spans.sum(axis=1).cumsum() - 1]])
        return RaggedRows(self.pool[positions].astype(np.int64), indptr), RaggedRows(counts, indptr)

    def _list_spans(self, template: Integers, history: RaggedRows) -> tuple[Integers, Integers]:
        """Return (items,) first tokens and numbers of tokens of each item of histories, with the mark behind it."""
        items, read = history.values, history.lengths
        starts = self._first_block + items * self.width
        lengths = np.full(len(items), self.width)
        titled = np.flatnonzero(np.repeat(self._has_titles[template], read))
        if len(titled):
            starts[titled], lengths[titled] = self._title_begin[items[titled]], self._title_length[items[titled]]
        filled = read > 0
        lengths[history.indptr[1:][filled] - 1] -= self._open_mark[template[filled]]
        return starts, lengths


class _Spans:
    """A table of spans of one array of tokens; the first span is empty."""

    def __init__(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._num_tokens = 0
        self._spans: list[tuple[Integers, Integers]] = [(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))]
        self._num_spans = 1
        self._texts: list[tuple[TokenTexts, int, dict[bool, int]]] = []

    def add_tokens(self, tokens: np.ndarray) -> int:
        """Add tokens and return the place of the first."""
        self._tokens.append(np.asarray(tokens, dtype=np.int32))
        self._num_tokens += len(tokens)
        return self._num_tokens - len(tokens)

    def add(self, begin: Integers | list[int], length: Integers | list[int]) -> int:
        """Add spans by their first tokens and lengths, and return the number of the first."""
        self._spans.append((np.asarray(begin, dtype=np.int64), np.asarray(length, dtype=np.int64)))
        self._num_spans += len(begin)
        return self._num_spans - len(begin)

    def add_texts(self, texts: TokenTexts, ends: bool) -> int:
        """Add texts, with or without their end tokens, unless they are there; return the number of the first."""
        known = next((one for one in self._texts if one[0] is texts), None)  # texts of equal slots are the same object
        if known is None:
            known = (texts, self.add_tokens(texts.ids), {})
            self._texts.append(known)
        _, first_token, numbers = known
        if ends not in numbers:
            numbers[ends] = self.add(texts.indptr[:-1] + first_token, texts.lengths + (texts.ends if ends else 0))
        return numbers[ends]

    def add_marked(self, texts: TokenTexts, mark: list[int]) -> tuple[Integers, Integers]:
        """Add tokens of texts, each with a mark behind it, and return the first token and the number of tokens of each."""
        count = len(texts.ends)
        starts = np.stack([texts.indptr[:-1], np.full(count, len(texts.ids))], axis=1)
        lengths = np.stack([texts.lengths, np.full(count, len(mark))], axis=1)
        joined = joined_spans(np.concatenate([texts.ids, np.array(mark, dtype=np.int32)]), starts, lengths)
        return joined.indptr[:-1] + self.add_tokens(joined.values), joined.lengths

    def joined(self) -> tuple[np.ndarray, Integers, Integers]:
        """Return all tokens, and the first tokens and the lengths of all spans."""
        begin, length = (np.concatenate(parts) for parts in zip(*self._spans, strict=True))
        return np.concatenate(self._tokens), begin, length
