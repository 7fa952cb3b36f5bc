"""The alignment tasks (section III-C of LC-Rec, arXiv 2311.09049): a class for each, and the table of all of them.

A class defines the documents of a task and the slots of its instructions and responses. The wording is in
`alignment_templates.yaml`. A task of your own needs both, and no other change:

    @alignment_task
    class ItemToBrand(AlignmentTask):
        name, section = "item2brand", "own"
        template_kinds = {"": TemplateKind((INDEX,), "brand")}

        def texts(self, data):
            return {"brand": data.items["brand"].to_pylist()}

        def documents(self, source):
            return source.items()

and a YAML file for the argument `templates`:

    item2brand: ["Which brand makes {index}?"]

`align(AlignArguments(tasks=["seqrec", "item2brand=0.5"], templates="brands.yaml", ...))` then trains it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.lcrec.alignment_documents import Documents, Spans, last_items, prefixes, windows
from modeling_cllm4rec.lcrec.prompts import QUERY

__all__ = [
    "ALIGNMENT_TASKS",
    "AlignmentTask",
    "DocumentSource",
    "TemplateKind",
    "alignment_task",
    "checked_tasks",
    "parse_tasks",
]

HISTORY, INDEX, TITLE_HISTORY = "history", "index", "title_history"
TITLE, DESCRIPTION, BOTH, PREFERENCE = "title", "description", "both", "preference"
ITEM_TEXT_SLOTS = frozenset({TITLE, DESCRIPTION, BOTH, TITLE_HISTORY})
"""Slots that are filled from titles and descriptions."""
INTENTION_SLOTS = frozenset({QUERY, PREFERENCE})
"""Slots that are filled from `Intentions`."""
SLOTS = ITEM_TEXT_SLOTS | INTENTION_SLOTS | {HISTORY, INDEX}
"""Slots that the corpus fills for any task; other slots are texts of the task's own."""
ABOUT_ITEMS = frozenset({INDEX, TITLE, DESCRIPTION, BOTH, QUERY})
"""Slots that only documents about an item can fill."""

Booleans = npt.NDArray[np.bool_]


class TemplateKind(NamedTuple):
    """Slots of the templates of one kind.

    Attributes:
        placeholders: slots of the instruction; each template has each of them once.
        response: slot of the response. `"history"` is the next item of the history.
    """

    placeholders: tuple[str, ...]
    response: str


class DocumentSource(NamedTuple):
    """The training histories and the limits that the documents of a task are made from.

    Attributes:
        histories: item indices of the split `train`.
        num_items: size J of the catalogue.
        max_history: most items of a history in a document of this task.
        together: whether one document predicts each item of its history (`seqrec: together`).
    """

    histories: Histories
    num_items: int
    max_history: int
    together: bool

    def items(self) -> Documents:
        """Return a document for each item, without a history."""
        none = np.zeros(self.num_items, dtype=np.int64)
        return Documents(np.arange(self.num_items), none, none)

    def targets(self, spans: Spans) -> Documents:
        """Return a document for the target item of each span."""
        return Documents(self.histories.items[spans.end].astype(np.int64), spans.begin, spans.end)


class AlignmentTask:
    """A kind of instruction with a response, and the documents that it makes of a data folder.

    Attributes:
        name: the name in `tasks` and in the YAML file of templates.
        section: section of the paper and its heading.
        template_kinds: kind -> its slots, in the order in which a document counts its templates. A task with one kind
            of templates names it "".
        subject: whether a document is about an item or a user.
        continues_history: whether the response is the next item of the list that ends the instruction, as in the
            prompt of `recommend`. Such a template ends with `{history}`, and no answer text follows.
        ablation_row: row of the paper's table IV that adds this task; empty for none.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    template_kinds: ClassVar[Mapping[str, TemplateKind]]
    subject: ClassVar[Literal["item", "user"]] = "item"
    continues_history: ClassVar[bool] = False
    ablation_row: ClassVar[str] = ""

    @property
    def slots(self) -> frozenset[str]:
        """Slots of all templates and responses."""
        return frozenset(slot for kind in self.template_kinds.values() for slot in (*kind.placeholders, kind.response))

    def texts(self, data: RecommendationData) -> dict[str, list[str]]:
        """Return the texts of slots that only this task has: slot -> a text for each subject, empty where there is none."""
        return {}

    def documents(self, source: DocumentSource) -> Documents:
        """Return all documents; the corpus leaves out those that suit no kind of templates."""
        raise NotImplementedError(f"{type(self).__name__} must define documents(source)")

    def suits(self, kind: str, documents: Documents, has_text: Mapping[str, Booleans]) -> Booleans:
        """Return which documents the templates of a kind may word: (documents,) bool.

        Here those whose subject has all texts that the kind needs.

        Args:
            has_text: slot -> (subjects,) bool, for each slot with texts of the subject. That a user has a preference is checked
                elsewhere, where the subject is an item.
        """
        suits = np.ones(len(documents.subject), dtype=bool)
        placeholders, response = self.template_kinds[kind]
        for slot in (*placeholders, response):
            if slot in has_text:
                suits &= has_text[slot][documents.subject]
        return suits


ALIGNMENT_TASKS: dict[str, AlignmentTask] = {}
"""Name -> task. The place in this table is part of the random seed of a task's draws: new tasks go to the end."""

TaskClass = TypeVar("TaskClass", bound=type[AlignmentTask])


def alignment_task(task: TaskClass) -> TaskClass:
    """Add a task to `ALIGNMENT_TASKS`; a class decorator.

    Raises:
        InputError: a name that is taken or cannot be written in `tasks`, or slots that its documents cannot fill.
    """
    if task.name in (*ALIGNMENT_TASKS, "answer") or not task.name.isidentifier():
        raise InputError(
            f"alignment task {task.name!r}: the name is taken or is no identifier; taken are {', '.join(ALIGNMENT_TASKS)}, answer"
        )
    made = task()
    wrong = {slot for kind in made.template_kinds.values() for slot in _unfilled_slots(made.subject, kind)}
    if wrong:
        raise InputError(
            f"alignment task {task.name}: its documents are about {made.subject}s and have no {', '.join(sorted(wrong))}"
        )
    for kind, slots in made.template_kinds.items():
        if {HISTORY, TITLE_HISTORY} <= set(slots.placeholders):
            raise InputError(f"alignment task {task.name}: the templates of kind {kind!r} list a history twice; choose one slot")
    ALIGNMENT_TASKS[task.name] = made
    return task


def _unfilled_slots(subject: str, kind: TemplateKind) -> set[str]:
    """Return the slots of a kind that its documents cannot fill. A document about an item has a user only with a history."""
    slots = {*kind.placeholders, kind.response}
    if subject == "user":
        return slots & ABOUT_ITEMS
    return set() if {HISTORY, TITLE_HISTORY} & set(kind.placeholders) else slots & {PREFERENCE}


@alignment_task
class SequentialRecommendation(AlignmentTask):
    """Semantic IDs of a history -> the semantic ID of the next item. This is the prompt of `recommend`."""

    name, section = "seqrec", "III-C, sequential item prediction"
    template_kinds = {"": TemplateKind((HISTORY,), HISTORY)}
    continues_history = True
    ablation_row = "SEQ"

    def documents(self, source: DocumentSource) -> Documents:
        """Return windows that predict all their items, or a document for each prefix."""
        histories = source.histories
        return source.targets(windows(histories, source.max_history) if source.together else prefixes(histories))


@alignment_task
class TextToItem(AlignmentTask):
    """Title, description, or both -> the semantic ID of the item."""

    name, section = "item2index", "III-C, explicit index-language alignment"
    template_kinds = {
        TITLE: TemplateKind((TITLE,), INDEX),
        DESCRIPTION: TemplateKind((DESCRIPTION,), INDEX),
        BOTH: TemplateKind((TITLE, DESCRIPTION), INDEX),
    }
    ablation_row = "+MUT"

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each item."""
        return source.items()


@alignment_task
class ItemToText(AlignmentTask):
    """The semantic ID of an item -> its title, description, or both."""

    name, section = "index2item", "III-C, explicit index-language alignment"
    template_kinds = {
        TITLE: TemplateKind((INDEX,), TITLE),
        DESCRIPTION: TemplateKind((INDEX,), DESCRIPTION),
        BOTH: TemplateKind((INDEX,), BOTH),
    }
    ablation_row = "+MUT"

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each item."""
        return source.items()


@alignment_task
class AsymmetricPrediction(AlignmentTask):
    """Semantic IDs of a history -> title or description of the next item, or titles -> its semantic ID."""

    name, section = "fusionseqrec", "III-C, implicit recommendation-oriented alignment"
    template_kinds = {
        TITLE: TemplateKind((HISTORY,), TITLE),
        INDEX: TemplateKind((TITLE_HISTORY,), INDEX),
        DESCRIPTION: TemplateKind((HISTORY,), DESCRIPTION),
    }
    ablation_row = "+ASY"

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each item of a history but the first."""
        return source.targets(prefixes(source.histories))


@alignment_task
class IntentionSearch(AlignmentTask):
    """A query, or a history with a query, a preference or both -> the semantic ID of the item.

    The first two are the prompts of `search`. With a history, the query is the intention of that user for that item, where one
    is known.
    """

    name, section = "itemsearch", "III-C, implicit recommendation-oriented alignment"
    template_kinds = {
        QUERY: TemplateKind((QUERY,), INDEX),
        HISTORY: TemplateKind((HISTORY, QUERY), INDEX),
        PREFERENCE: TemplateKind((HISTORY, PREFERENCE), INDEX),
        BOTH: TemplateKind((HISTORY, PREFERENCE, QUERY), INDEX),
    }
    ablation_row = "+ITE"

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each item, and one for each user's last training item."""
        parts = (source.items(), source.targets(last_items(source.histories)))
        return Documents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def suits(self, kind: str, documents: Documents, has_text: Mapping[str, Booleans]) -> Booleans:
        """Return which documents have a history, or none."""
        has_history = documents.end > documents.begin
        return ~has_history if kind == QUERY else has_history


@alignment_task
class PreferenceInference(AlignmentTask):
    """Semantic IDs of a history without its last item -> the user's preference in words."""

    name, section = "preferenceobtain", "III-C, implicit recommendation-oriented alignment"
    template_kinds = {"": TemplateKind((HISTORY,), PREFERENCE)}
    subject = "user"
    # No ablation_row: table IV's last row, +PER, is the recipe itself.

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each user with two training items or more."""
        return Documents(*last_items(source.histories))


def checked_tasks(tasks: Mapping[str, float] | None) -> dict[str, float]:
    """Return task -> share of its documents that an epoch reads, in the order of `ALIGNMENT_TASKS`; None means all of all.

    Raises:
        InputError: an unknown task, a share outside (0, 1], no task.

    Example:
        >>> checked_tasks({"item2index": 0.5, "seqrec": 1})
        {'seqrec': 1.0, 'item2index': 0.5}
    """
    given = dict.fromkeys(ALIGNMENT_TASKS, 1.0) if tasks is None else dict(tasks)
    for task, share in given.items():
        if task not in ALIGNMENT_TASKS:
            raise InputError(f"tasks: unknown task {task!r}; {nearest(task, ALIGNMENT_TASKS)}")
        if not 0 < share <= 1:
            raise InputError(f"tasks: {task} has the share {share}; it must lie in (0, 1]; leave the task out to switch it off")
    if not given:
        raise InputError(f"tasks is empty; name at least one of {', '.join(ALIGNMENT_TASKS)}")
    return {task: float(given[task]) for task in ALIGNMENT_TASKS if task in given}


def parse_tasks(words: Sequence[str]) -> dict[str, float]:
    """Return task -> share of words such as `seqrec` and `fusionseqrec=0.5`.

    Raises:
        InputError: an unknown task, a share that is no number in (0, 1], no task.

    Example:
        >>> parse_tasks(["seqrec", "fusionseqrec=0.5"])
        {'seqrec': 1.0, 'fusionseqrec': 0.5}
    """
    shares: dict[str, float] = {}
    for word in words:
        name, equals, number = word.partition("=")
        try:
            share = float(number) if equals else 1.0
        except ValueError as error:
            raise InputError(f"tasks: {word!r} has no number after the =, as in {name}=0.5") from error
        if name not in ALIGNMENT_TASKS or not 0 < share <= 1:
            raise InputError(
                f"tasks: {word!r} is no task; the tasks are {', '.join(ALIGNMENT_TASKS)}, alone or with a share in (0, 1], "
                "as in seqrec=0.5"
            )
        shares[name] = share
    if not shares:
        raise InputError(f"tasks is empty; name at least one of {', '.join(ALIGNMENT_TASKS)}")
    return shares
