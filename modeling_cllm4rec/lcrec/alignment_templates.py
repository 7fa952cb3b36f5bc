"""The templates of the alignment tasks: read from YAML, checked, and cut into token ids."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY

SEPARATOR, TITLE_SEPARATOR = ", ", "; "
"""Between two items of a history: between their indices, and between their titles."""

HISTORY, INDEX, TITLE, DESCRIPTION, TITLE_HISTORY, PREFERENCE = (
    "history",
    "index",
    "title",
    "description",
    "title_history",
    "preference",
)
BOTH = "both"
OF_INDICES = (HISTORY, INDEX)
"""Placeholders that index tokens replace; one space before them belongs to them."""


@dataclass(frozen=True)
class Group:
    """Templates of one kind: the placeholders that each must hold, and what the response is."""

    placeholders: tuple[str, ...]
    response: str


GROUPS = {
    "seqrec": {"": Group((HISTORY,), HISTORY)},
    "item2index": {
        TITLE: Group((TITLE,), INDEX),
        DESCRIPTION: Group((DESCRIPTION,), INDEX),
        BOTH: Group((TITLE, DESCRIPTION), INDEX),
    },
    "index2item": {
        TITLE: Group((INDEX,), TITLE),
        DESCRIPTION: Group((INDEX,), DESCRIPTION),
        BOTH: Group((INDEX,), BOTH),
    },
    "fusionseqrec": {
        TITLE: Group((HISTORY,), TITLE),
        DESCRIPTION: Group((HISTORY,), DESCRIPTION),
        INDEX: Group((TITLE_HISTORY,), INDEX),
    },
    "itemsearch": {
        QUERY: Group((QUERY,), INDEX),
        HISTORY: Group((HISTORY, QUERY), INDEX),
    },
    "preferenceobtain": {"": Group((HISTORY,), PREFERENCE)},
}
"""Task -> kind -> what its templates are; a task with one kind of templates has none to name ("")."""

TASKS = tuple(GROUPS)
"""The alignment tasks of the paper, by the names of its code."""


@dataclass(frozen=True)
class AlignmentTemplates:
    """The wording of all tasks.

    Attributes:
        answer: what stands between instruction and response, in all tasks but seqrec.
        groups: task -> kind -> templates, kinds as in `GROUPS`.
    """

    answer: str
    groups: Mapping[str, Mapping[str, tuple[str, ...]]]


def load_templates(path: str | Path | None = None) -> AlignmentTemplates:
    """The packaged templates, or those with some groups replaced by a YAML file's.

    Args:
        path: a YAML file in the form of `corpora/alignment_templates.yaml`; a kind of templates that it does not name stays.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is no YAML, names an unknown task or kind, or has a template without its placeholders.

    Example:
        >>> templates = load_templates()
        >>> {kind: len(group) for kind, group in templates.groups["item2index"].items()}
        {'title': 6, 'description': 6, 'both': 7}
    """
    packaged = resources.files(__package__).joinpath("alignment_templates.yaml")
    answer, groups = _checked("the packaged templates", yaml.safe_load(packaged.read_text(encoding="utf-8")))
    if path is None:
        return AlignmentTemplates(answer or "", groups)
    if not Path(path).is_file():
        raise MissingFileError(f"templates: there is no file {path}; name a YAML file, or leave it out for the packaged ones")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"templates: {path} is not YAML ({error})") from error
    own_answer, own_groups = _checked(str(path), given)
    together = {task: {**kinds, **own_groups.get(task, {})} for task, kinds in groups.items()}
    return AlignmentTemplates((answer or "") if own_answer is None else own_answer, together)


def _checked(source: str, given: Any) -> tuple[str | None, dict[str, dict[str, tuple[str, ...]]]]:
    if not isinstance(given, dict):
        raise InputError(f"templates: {source} must map tasks to templates, got {type(given).__name__}")
    _check_names(source, "task", given, [*TASKS, "answer"])
    answer = given.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise InputError(f"templates: answer in {source} is {answer!r}; it must be a text")
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for task in (name for name in given if name != "answer"):
        kinds = {"": given[task]} if "" in GROUPS[task] else given[task]
        if not isinstance(kinds, dict):
            raise InputError(f"templates: {task} in {source} must map {', '.join(GROUPS[task])} to lists of templates")
        _check_names(source, f"kind of {task}", kinds, list(GROUPS[task]))
        groups[task] = {kind: _checked_list(source, task, kind, kinds[kind]) for kind in kinds}
    return answer, groups


def _check_names(source: str, what: str, given: Iterable[Any], allowed: list[str]) -> None:
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed)
            raise InputError(f"templates: {source} names the unknown {what} {name!r}; nearest: {near or allowed}")


def _checked_list(source: str, task: str, kind: str, templates: Any) -> tuple[str, ...]:
    name = f"{task}.{kind}" if kind else task
    if not isinstance(templates, list) or not templates:
        raise InputError(f"templates: {name} in {source} must be a list of one template or more, got {templates!r}")
    wanted = GROUPS[task][kind].placeholders
    for template in templates:
        try:
            found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except (TypeError, ValueError) as error:
            raise InputError(f"templates: {name} in {source} has {template!r}, which is no template ({error})") from error
        if sorted(found) != sorted(wanted):
            braced = ", ".join("{" + field + "}" for field in wanted)
            raise InputError(f"templates: {name} in {source} has {template!r}; it must hold each of {braced} once and no other")
        if task == "seqrec" and not template.endswith("{history}"):
            raise InputError(f"templates: seqrec in {source} has {template!r}; it must end with {{history}}, which goes on")
    return tuple(templates)


def checked_tasks(tasks: Mapping[str, float] | None) -> dict[str, float]:
    """Task -> share of its documents that an epoch reads, in the order of `TASKS`; None means all of all.

    Raises:
        InputError: an unknown task, a share outside (0, 1], no task.

    Example:
        >>> checked_tasks({"item2index": 0.5, "seqrec": 1})
        {'seqrec': 1.0, 'item2index': 0.5}
    """
    given = dict.fromkeys(TASKS, 1.0) if tasks is None else dict(tasks)
    for task, share in given.items():
        if task not in TASKS:
            near = difflib.get_close_matches(str(task), TASKS)
            raise InputError(f"tasks: unknown task {task!r}; nearest: {near or list(TASKS)}")
        if not 0 < share <= 1:
            raise InputError(f"tasks: {task} has the share {share}; it must lie in (0, 1]; leave the task out to switch it off")
    if not given:
        raise InputError(f"tasks is empty; name at least one of {', '.join(TASKS)}")
    return {task: float(given[task]) for task in TASKS if task in given}


def cut_template(template: str, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Pieces of a template: lists of token ids, encoded once, and placeholders between them (`"items"` for the history).

    A tokenizer with a token for the beginning of a text gets it. One space before index tokens belongs to them.
    """
    pieces: list[Any] = [] if tokenizer.bos_token_id is None else [[tokenizer.bos_token_id]]
    for text, name, _, _ in string.Formatter().parse(template):
        words = _encode(text.removesuffix(" ") if name in OF_INDICES else text, tokenizer)
        if words:
            pieces.append(words)
        if name is not None:
            pieces.append(ITEMS if name == HISTORY else name)
    return pieces


def recommendation_pieces(templates: AlignmentTemplates, tokenizer: PreTrainedTokenizerBase) -> list[list[Any]]:
    """Pieces of all prompts of sequential item prediction, for `LCRecConfig.recommendation_prompts`."""
    return [cut_template(template, tokenizer) for template in templates.groups["seqrec"][""]]


def query_pieces(templates: AlignmentTemplates, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[Any]]]:
    """Pieces of all prompts of search by intention, for `LCRecConfig.query_prompts`: `"alone"` and with a `"history"`."""
    kinds = {"alone": QUERY, "history": HISTORY}
    return {
        name: [cut_template(template + templates.answer, tokenizer) for template in templates.groups["itemsearch"][kind]]
        for name, kind in kinds.items()
    }


def separator_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids between the indices of a history, for `LCRecConfig.separator`."""
    return _encode(SEPARATOR.removesuffix(" "), tokenizer)


def title_separator_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids between the titles of a history."""
    return _encode(TITLE_SEPARATOR, tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if text else []
