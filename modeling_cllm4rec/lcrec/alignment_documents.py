"""What the alignment corpora are made of: which stretches of which histories, and the templates to put them into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.lcrec.alignment_templates import BOTH, DESCRIPTION, GROUPS, AlignmentTemplates, cut_template

Integers = npt.NDArray[np.int64]


class Stretches(NamedTuple):
    """Stretches of all histories, one history after the other: what was read is items[begin:end], the target items[end].

    Attributes:
        user: whose they are; begin, end: (stretches,) places in `Histories.items`.
    """

    user: Integers
    begin: Integers
    end: Integers


def prefixes(histories: Histories) -> Stretches:
    """Every item of a history but the first, after all items before it.

    Example:
        >>> histories = Histories(np.array([0, 3, 4]), np.array([7, 8, 9, 7], dtype=np.int32))
        >>> [column.tolist() for column in prefixes(histories)]
        [[0, 0], [0, 0], [1, 2]]
    """
    user = np.repeat(np.arange(len(histories.indptr) - 1), np.diff(histories.indptr))
    end = np.flatnonzero(np.arange(len(histories.items)) > histories.indptr[user])
    return Stretches(user[end], histories.indptr[user[end]], end)


def last_items(histories: Histories) -> Stretches:
    """The last item of each history of two or more, after all items before it."""
    user = np.flatnonzero(np.diff(histories.indptr) > 1)
    return Stretches(user, histories.indptr[user], histories.indptr[user + 1] - 1)


def windows(histories: Histories, most: int) -> Stretches:
    """Histories in stretches of at most `most` items and a target, so that each item but the first is a target in one.

    Two stretches of a history share one item: the target of the earlier is the first that the later reads.

    Example:
        >>> histories = Histories(np.array([0, 5]), np.arange(5, dtype=np.int32))
        >>> [column.tolist() for column in windows(histories, most=3)]
        [[0, 0], [1, 0], [4, 1]]
    """
    counts = np.diff(histories.indptr)
    user = np.flatnonzero(counts > 1)
    number = -(-(counts[user] - 1) // most)
    back = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)  # windows behind the last one
    user = np.repeat(user, number)
    end = histories.indptr[user + 1] - 1 - most * back
    return Stretches(user, np.maximum(histories.indptr[user], end - most), end)


class Documents(NamedTuple):
    """What a corpus is made of, column by column.

    Attributes:
        task: number in `TASKS`.
        subject: item index of the target; the user in preferenceobtain.
        begin, end: the history is items[begin:end], and the target items[end]; 0 and 0 without one.
        first, choices: templates to draw from: numbers first to first + choices - 1.
    """

    task: Integers
    subject: Integers
    begin: Integers
    end: Integers
    first: Integers
    choices: Integers


class Template(NamedTuple):
    """A template cut into pieces.

    Attributes:
        pieces: arrays of token ids and the names of placeholders.
        asks: those names; words: the number of its own tokens.
        response: what the model is to write, as in `alignment_templates.Group`.
    """

    task: str
    kind: str
    pieces: list[Any]
    asks: frozenset[str]
    words: int
    response: str


def cut_templates(templates: AlignmentTemplates, tasks: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[Template]:
    """The templates of tasks, one task after the other; within a task, those that need a description come last."""
    cut: list[Template] = []
    for task in tasks:
        for kind in sorted(GROUPS[task], key=lambda kind: kind in (DESCRIPTION, BOTH)):
            for text in templates.groups[task][kind]:
                pieces = cut_template(text if task == "seqrec" else text + templates.answer, tokenizer)
                words = sum(len(piece) for piece in pieces if not isinstance(piece, str))
                asks = frozenset(piece for piece in pieces if isinstance(piece, str))
                arrays = [piece if isinstance(piece, str) else np.array(piece, dtype=np.int64) for piece in pieces]
                cut.append(Template(task, kind, arrays, asks, words, GROUPS[task][kind].response))
    return cut
