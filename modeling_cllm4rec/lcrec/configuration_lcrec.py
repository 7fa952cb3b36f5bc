"""Configuration of LC-Rec (arXiv 2311.09049): a causal language model that writes items as semantic IDs.

This file is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..core.configuration_backbone import BackboneConfig, check_count, check_fingerprint, check_prompt, check_tokens
from ..core.errors import InputError

AUTO_MAP = {
    "AutoConfig": "configuration_lcrec.LCRecConfig",
    "AutoModel": "modeling_lcrec.LCRecForRecommendation",
    "AutoModelForCausalLM": "modeling_lcrec.LCRecForCausalLM",
}
"""Auto class of transformers -> the class in a saved folder's own code."""

MOST_LEVELS = 26
"""Levels of a semantic ID have letters."""
MOST_BEAMS = 10_000


class LCRecConfig(BackboneConfig):
    """Shape of an LC-Rec model.

    Args:
        text_config: configuration of the causal language model inside, whose vocabulary includes the tokens of semantic IDs, as a
            `PreTrainedConfig` or a dict with `model_type`.
        num_items: size J of the catalogue.
        num_users: users whose histories are saved with the model; they have no weights.
        num_levels: tokens H of a semantic ID.
        codebook_size: codes K of a level.
        first_index_token: token id of code 0 of the first level; code c of level h (from 0) has id
            `first_index_token + h * codebook_size + c`.
        recommendation_prompts: the tokenized templates of sequential recommendation, each a list of segments (lists of token
            ids, and the word `"items"` for the history); see `prompts.py`.
        query_prompts: the same for search by intention, under `"alone"` and `"history"`.
        separator: token ids between two items of a history.
        max_history: most items of a history that a prompt holds, the last ones (20 in the paper).
        search_beams: beams of the constrained search (20 in the paper).
        scoring: what `recommend` does where the question does not say: `"beam"`, `"all"`, or `"head"`
            with an item head.
        item_head: whether the model has an item head, see `item_head.ItemHead`.
        item_inputs: whether the model reads the item head's rows: the row of an item is added to the last token of its semantic
            ID in a prompt.
        item_head_embedding_size: width of the text embeddings that the item head reads; 0 for none.
        item_head_text_size: dimensions of its whitened text vectors; 0 for none.
        item_encoder: settings of the item embeddings (encoder, fields, pooling), for items that are added later.
        catalogue_fingerprint: SHA-256 of the item ids in their order, to check that a catalogue belongs to the checkpoint.
        codes_fingerprint: SHA-256 of the codes of all items and of the tokens that they are; None in folders of earlier versions.
        index_history: earlier versions of the index, oldest first, to which items were added: `folder` (its name), `num_items`
            and `codes_fingerprint` of the model before.

    Example:
        >>> from transformers import GPT2Config
        >>> text_config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)
        >>> LCRecConfig(text_config, num_items=9, num_levels=2, codebook_size=4, first_index_token=12).last_index_token
        19
    """

    model_type = "lcrec"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        num_items: int = 0,
        num_users: int = 0,
        num_levels: int = 4,
        codebook_size: int = 256,
        first_index_token: int | None = None,
        recommendation_prompts: list[list[Any]] | None = None,
        query_prompts: dict[str, list[list[Any]]] | None = None,
        separator: list[int] | None = None,
        max_history: int = 20,
        search_beams: int = 20,
        scoring: Literal["beam", "all", "head"] = "beam",
        item_head: bool = False,
        item_inputs: bool = False,
        item_head_embedding_size: int = 0,
        item_head_text_size: int = 0,
        item_encoder: dict[str, Any] | None = None,
        catalogue_fingerprint: str | None = None,
        codes_fingerprint: str | None = None,
        index_history: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        text_config = self.read_text_config(text_config)
        vocabulary = text_config.get_text_config().vocab_size
        check_count("num_levels", num_levels, 1, MOST_LEVELS)
        check_count("codebook_size", codebook_size, 1)
        if first_index_token is None:
            first_index_token = vocabulary - num_levels * codebook_size
        elif isinstance(first_index_token, bool) or not isinstance(first_index_token, Integral):
            raise InputError(f"first_index_token is {first_index_token!r}; it must be a whole number")
        last = first_index_token + num_levels * codebook_size - 1
        if first_index_token < 0 or last >= vocabulary:
            raise InputError(
                f"first_index_token is {first_index_token}: {num_levels} levels of {codebook_size} codes end at token {last}, "
                f"but the language model has {vocabulary} tokens; add the tokens of semantic IDs to its vocabulary first "
                "(from_backbone)"
            )
        for name, count in (("num_users", num_users), ("num_items", num_items)):
            check_count(name, count)
        check_count("max_history", max_history, 1)
        check_count("search_beams", search_beams, 1, MOST_BEAMS)
        for name, switch in (("item_head", item_head), ("item_inputs", item_inputs)):
            if not isinstance(switch, bool):
                raise InputError(f"{name} is {str(switch)[:100]}; it must be true or false")
        if item_inputs and not item_head:
            raise InputError("item_inputs is True, but the model has no item head whose rows it could read; set item_head=True")
        if item_inputs and codebook_size**num_levels >= 2**63:
            raise InputError(
                f"item_inputs is True, and {num_levels} levels of {codebook_size} codes are too many semantic IDs to look up; "
                "index with smaller codebooks, or set item_inputs=False"
            )
        if scoring not in ("beam", "all", "head") or (scoring == "head" and not item_head):
            allowed = (
                "'beam', 'all' or 'head'" if item_head else "'beam' or 'all', because the model has no item head (item_head)"
            )
            raise InputError(f"scoring is {str(scoring)[:100]!r}; it must be {allowed}")
        sizes = {"item_head_embedding_size": item_head_embedding_size, "item_head_text_size": item_head_text_size}
        for name, count in sizes.items():
            check_count(name, count)
        if bool(item_head_embedding_size) != bool(item_head_text_size) or (item_head_text_size and not item_head):
            raise InputError(
                f"item_head is {item_head}, item_head_embedding_size {item_head_embedding_size} and item_head_text_size "
                f"{item_head_text_size}; an item head has both sizes or none, and without one both are 0"
            )
        _check_templates("recommendation_prompts", recommendation_prompts, vocabulary, ("items",), text_config)
        if query_prompts is not None and (not isinstance(query_prompts, dict) or set(query_prompts) != {"alone", "history"}):
            raise InputError(f"query_prompts is {str(query_prompts)[:100]}; it must have the templates 'alone' and 'history'")
        for name, templates in (query_prompts or {}).items():
            words = ("query",) if name == "alone" else ("items", "query")
            _check_templates(f"query_prompts[{name!r}]", templates, vocabulary, words, text_config)
        if separator is not None:
            check_tokens("separator", separator, vocabulary)
        if item_encoder is not None and not isinstance(item_encoder, dict):
            raise InputError(f"item_encoder is {str(item_encoder)[:100]}; it must be an object of settings")
        check_fingerprint("catalogue_fingerprint", catalogue_fingerprint)
        check_fingerprint("codes_fingerprint", codes_fingerprint)
        if index_history is not None and not (
            isinstance(index_history, list) and all(isinstance(one, dict) for one in index_history)
        ):
            raise InputError(f"index_history is {str(index_history)[:100]}; it must be a list of the versions before")
        self.num_items = num_items
        self.num_users = num_users
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.first_index_token = first_index_token
        self.recommendation_prompts = recommendation_prompts
        self.query_prompts = query_prompts
        self.separator = separator
        self.max_history = max_history
        self.search_beams = search_beams
        self.scoring = scoring
        self.item_head = item_head
        self.item_inputs = item_inputs
        self.item_head_embedding_size = item_head_embedding_size
        self.item_head_text_size = item_head_text_size
        self.item_encoder = item_encoder
        self.catalogue_fingerprint = catalogue_fingerprint
        self.codes_fingerprint = codes_fingerprint
        self.index_history = index_history or []
        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__init__(text_config, **kwargs)

    @property
    def index_tokens(self) -> tuple[int, int, int]:
        """First token id of the semantic IDs, their levels, and the codes of a level."""
        return self.first_index_token, self.num_levels, self.codebook_size

    @property
    def last_index_token(self) -> int:
        """Token id of the last code of the last level."""
        return int(self.first_index_token + self.num_levels * self.codebook_size - 1)


def _check_templates(name: str, templates: Any, tokens: int, words: Sequence[str], text_config: PreTrainedConfig) -> None:
    """Check the templates of a task, each with these placeholders: a list of lists of segments, or None."""
    if templates is None:
        return
    if not isinstance(templates, (list, tuple)) or not templates:
        raise InputError(f"{name} is {str(templates)[:100]}; it must be a list of templates, at least one")
    for number, pieces in enumerate(templates):
        check_prompt(f"{name}[{number}]", pieces, tokens, words, text_config)


__all__ = ["AUTO_MAP", "LCRecConfig"]
