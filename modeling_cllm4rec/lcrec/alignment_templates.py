"""Templates of the alignment tasks: read from YAML, checked, and tokenized."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError, MissingFileError, nearest
from modeling_cllm4rec.lcrec.alignment_tasks import (
    ALIGNMENT_TASKS,
    HISTORY,
    INDEX,
    AlignmentTask,
    IntentionSearch,
    SequentialRecommendation,
)
from modeling_cllm4rec.lcrec.prompts import ITEMS, QUERY

__all__ = [
    "AlignmentTemplates",
    "TokenizedTemplate",
    "load_templates",
    "query_segments",
    "recommendation_segments",
    "separator_ids",
    "title_separator_ids",
    "tokenize_template",
    "tokenize_templates",
]

SEPARATOR, TITLE_SEPARATOR = ", ", "; "
"""Between two items of a history: between their semantic IDs, and between their titles."""


@dataclass(frozen=True)
class AlignmentTemplates:
    """The wording of all tasks.

    Attributes:
        answer: text between instruction and response, in all tasks but those that continue a history.
        groups: task -> kind -> templates, kinds as in `AlignmentTask.template_kinds`.
    """

    answer: str
    groups: Mapping[str, Mapping[str, tuple[str, ...]]]


def load_templates(path: str | Path | None = None) -> AlignmentTemplates:
    """Return the packaged templates, or those with some groups replaced by a YAML file's.

    Args:
        path: a YAML file in the form of `lcrec/alignment_templates.yaml`. Kinds of templates that it does not name keep the
            packaged ones.

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"templates: {path} is not YAML ({error})") from error
    own_answer, own_groups = _checked(str(path), given)
    merged = {task: {**groups.get(task, {}), **own_groups.get(task, {})} for task in (*groups, *own_groups)}
    return AlignmentTemplates((answer or "") if own_answer is None else own_answer, merged)


def _checked(source: str, given: Any) -> tuple[str | None, dict[str, dict[str, tuple[str, ...]]]]:
    if not isinstance(given, dict):
        raise InputError(f"templates: {source} must map tasks to templates, got {type(given).__name__}")
    _check_names(source, "task", given, [*ALIGNMENT_TASKS, "answer"])
    answer = given.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise InputError(f"templates: answer in {source} is {answer!r}; it must be a text")
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in (name for name in given if name != "answer"):
        task = ALIGNMENT_TASKS[name]
        kinds = {"": given[name]} if "" in task.template_kinds else given[name]
        if not isinstance(kinds, dict):
            raise InputError(f"templates: {name} in {source} must map {', '.join(task.template_kinds)} to lists of templates")
        _check_names(source, f"kind of {name}", kinds, list(task.template_kinds))
        groups[name] = {kind: _checked_list(source, task, kind, kinds[kind]) for kind in kinds}
    return answer, groups


def _check_names(source: str, what: str, given: Iterable[Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"templates: {source} names the unknown {what} {name!r}; {nearest(name, known)}")


def _checked_list(source: str, task: AlignmentTask, kind: str, templates: Any) -> tuple[str, ...]:
    name = f"{task.name}.{kind}" if kind else task.name
    if not isinstance(templates, list) or not templates:
        raise InputError(f"templates: {name} in {source} must be a list of one template or more, got {templates!r}")
    placeholders = task.template_kinds[kind].placeholders
    for template in templates:
        try:
            found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except (TypeError, ValueError) as error:
            raise InputError(f"templates: {name} in {source} has {template!r}, which is no template ({error})") from error
        if sorted(found) != sorted(placeholders):
            braced = ", ".join("{" + field + "}" for field in placeholders)
            raise InputError(f"templates: {name} in {source} has {template!r}; it must hold each of {braced} once and no other")
        if task.continues_history and not template.endswith("{history}"):
            raise InputError(
                f"templates: {name} in {source} has {template!r}; it must end with {{history}}, which the response continues"
            )
    return tuple(templates)


class TokenizedTemplate(NamedTuple):
    """A template as segments.

    Attributes:
        task, kind: the task and kind of the template.
        segments: arrays of token ids, and names of slots between them (`"items"` for the history).
        slots: those names.
        words: number of the template's own tokens.
        response: slot of the response, see `TemplateKind`.
    """

    task: AlignmentTask
    kind: str
    segments: list[Any]
    slots: frozenset[str]
    words: int
    response: str


def tokenize_templates(
    templates: AlignmentTemplates, tasks: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> list[TokenizedTemplate]:
    """Return the templates of tasks, one task after the other, kinds in the order of `AlignmentTask.template_kinds`.

    Raises:
        InputError: a task or a kind without templates.
    """
    tokenized: list[TokenizedTemplate] = []
    for task in (ALIGNMENT_TASKS[name] for name in tasks):
        for kind in task.template_kinds:
            texts = templates.groups.get(task.name, {}).get(kind)
            if not texts:
                name = f"{task.name}.{kind}" if kind else task.name
                raise InputError(f"templates: there are none of {name}; name a YAML file that has some, or leave out the task")
            for text in texts:
                segments = tokenize_template(text if task.continues_history else text + templates.answer, tokenizer)
                words = sum(len(segment) for segment in segments if not isinstance(segment, str))
                slots = frozenset(segment for segment in segments if isinstance(segment, str))
                arrays = [segment if isinstance(segment, str) else np.array(segment, dtype=np.int64) for segment in segments]
                tokenized.append(TokenizedTemplate(task, kind, arrays, slots, words, task.template_kinds[kind].response))
    return tokenized


def tokenize_template(template: str, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return the segments of a template: lists of token ids, and names of slots between them (`"items"` for the history).

    A tokenizer with a token for the beginning of a text puts it first.
    """
    segments: list[Any] = [] if tokenizer.bos_token_id is None else [[tokenizer.bos_token_id]]
    for text, name, _, _ in string.Formatter().parse(template):
        # The first token of a semantic ID includes the space before it, as a word does in a byte-level tokenizer.
        words = _encode(text.removesuffix(" ") if name in (HISTORY, INDEX) else text, tokenizer)
        if words:
            segments.append(words)
        if name is not None:
            segments.append(ITEMS if name == HISTORY else name)
    return segments


def recommendation_segments(templates: AlignmentTemplates, tokenizer: PreTrainedTokenizerBase) -> list[list[Any]]:
    """Return the segments of all prompts of sequential recommendation, for `LCRecConfig.recommendation_prompts`."""
    return [tokenize_template(template, tokenizer) for template in templates.groups[SequentialRecommendation.name][""]]


def query_segments(templates: AlignmentTemplates, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[Any]]]:
    """Return the segments of all prompts of search, for `LCRecConfig.query_prompts`: `"alone"` and with a `"history"`."""
    groups = templates.groups[IntentionSearch.name]
    return {
        name: [tokenize_template(template + templates.answer, tokenizer) for template in groups[kind]]
        for name, kind in (("alone", QUERY), ("history", HISTORY))
    }


def separator_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids between the semantic IDs of a history, for `LCRecConfig.separator`."""
    return _encode(SEPARATOR.removesuffix(" "), tokenizer)


def title_separator_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids between the titles of a history."""
    return _encode(TITLE_SEPARATOR, tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if text else []
