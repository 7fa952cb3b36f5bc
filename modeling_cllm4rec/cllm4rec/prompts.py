"""The prompt templates of CLLM4Rec; a recipe's YAML can replace each by name (`prompts:`)."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError, nearest

PLACEHOLDERS = {
    "interactions": {"user", "items"},
    "item_text": {"item", "column"},
    "biography": {"user"},
    "review": {"user", "item"},
    "recommendation": {"user", "items"},
    "anonymous_interactions": {"items"},
    "anonymous": {"items"},
}


@dataclass(frozen=True)
class Prompts:
    """Soft+hard prompts (section 3.2 of the paper): words around user and item ID tokens.

    The main text of a document follows the prompt; in `interactions` it is the items themselves. Only the main text is
    predicted. The `anonymous` templates are for users without an ID token. `item_text` is used once per text column of the
    items, with the name of the column for `{column}`.

    Raises:
        InputError: a template lacks a placeholder, has another one, or repeats one.

    Example:
        >>> Prompts.from_mapping({"review": "{user} on {item}:"}).review
        '{user} on {item}:'
    """

    interactions: str = "{user} chose: {items}"
    item_text: str = "{item}, {column}:"
    biography: str = "About {user}:"
    review: str = "{user} says of {item}:"
    recommendation: str = "{user} chose: {items}. Next:"
    anonymous_interactions: str = "Someone chose: {items}"
    anonymous: str = "Someone chose: {items}. Next:"

    def __post_init__(self) -> None:
        for field in fields(self):
            template = getattr(self, field.name)
            try:
                found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
            except (TypeError, ValueError) as error:
                raise InputError(f"prompts.{field.name} is {template!r}, which is no template ({error})") from error
            if sorted(found) != sorted(PLACEHOLDERS[field.name]):
                wanted = ", ".join("{" + name + "}" for name in sorted(PLACEHOLDERS[field.name]))
                raise InputError(f"prompts.{field.name} is {template!r}; it must hold each of {wanted} once and no other")
        for name in ("interactions", "anonymous_interactions"):
            if not getattr(self, name).endswith("{items}"):
                raise InputError(
                    f"prompts.{name} must end with {{items}}, because only the items are predicted; move the words before them"
                )

    @classmethod
    def from_mapping(cls, templates: Mapping[str, str] | None) -> Prompts:
        """Return the default templates with some of them replaced.

        Raises:
            InputError: an unknown name, or as the class itself.
        """
        names = [field.name for field in fields(cls)]
        for key in templates or {}:
            if key not in names:
                raise InputError(f"prompts: unknown template {key!r}; {nearest(key, names)}")
        return replace(cls(), **dict(templates or {}))


def tokenize_template(template: str, tokenizer: PreTrainedTokenizerBase, **words: str) -> list[Any]:
    """Split a template at its placeholders and tokenize the words between them.

    Args:
        words: placeholders to replace by text first, such as `column="title"`.

    Returns:
        Segments for `prompt_assembly.build_input_ids`: lists of token ids, and the names of placeholders.
    """
    for placeholder, word in words.items():
        template = template.replace("{" + placeholder + "}", word)
    segments: list[Any] = []
    if tokenizer.bos_token_id is not None:
        segments.append([tokenizer.bos_token_id])
    for text, name, _, _ in string.Formatter().parse(template):
        if name is not None:  # CLLM4RecTokenizer also drops one space before an ID token
            text = text.removesuffix(" ")
        if text:
            segments.append(list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]))
        if name is not None:
            segments.append(name)
    return segments


def recommendation_segments(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Return the segments that `CLLM4RecConfig.recommendation_prompts` holds."""
    return {
        "known": tokenize_template(prompts.recommendation, tokenizer),
        "anonymous": tokenize_template(prompts.anonymous, tokenizer),
    }


def next_item_segments(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Return `recommendation_segments` for a model that was not finetuned: interactions that its collaborative LM continues.

    With them in its configuration, a model recommends by its next-item head (LLM-PreRec of the paper).
    """
    return {
        "known": tokenize_template(prompts.interactions, tokenizer),
        "anonymous": tokenize_template(prompts.anonymous_interactions, tokenizer),
    }
