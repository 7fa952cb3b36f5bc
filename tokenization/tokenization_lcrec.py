"""Tokens of LC-Rec's semantic IDs in a language model's own tokenizer: `<a_12><b_3>...`, as added tokens."""

from __future__ import annotations

import string

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError

__all__ = ["add_semantic_id_tokens", "semantic_id_token"]

LEVEL_LETTERS = string.ascii_lowercase


def semantic_id_token(level: int, code: int) -> str:
    """Return the token of a code; levels are letters.

    Raises:
        InputError: a level that has no letter.

    Example:
        >>> semantic_id_token(1, 30)
        '<b_30>'
    """
    if not 0 <= level < len(LEVEL_LETTERS):
        raise InputError(f"level is {level}; a semantic ID has at most {len(LEVEL_LETTERS)} levels")
    return f"<{LEVEL_LETTERS[level]}_{code}>"


def add_semantic_id_tokens(tokenizer: PreTrainedTokenizerBase, num_levels: int, codebook_size: int) -> int:
    """Add the tokens of H levels of K codes to a tokenizer, in place.

    They are special tokens, so that a literal `<a_12>` in an item's text stays text where it is encoded with
    `split_special_tokens=True`, as the corpora do.

    Args:
        num_levels: H; codebook_size: K.

    Returns:
        The id of code 0 of the first level; code c of level h has this id + h * K + c.

    Raises:
        InputError: the tokenizer has such tokens already, or does not give them consecutive ids.

    Example:
        >>> first = add_semantic_id_tokens(tokenizer, num_levels=4, codebook_size=256)  # doctest: +SKIP
        >>> tokenizer.convert_tokens_to_ids("<b_3>") - first  # doctest: +SKIP
        259
    """
    words = [semantic_id_token(level, code) for level in range(num_levels) for code in range(codebook_size)]
    known = set(tokenizer.get_vocab())
    taken = [word for word in words if word in known]
    if taken:
        raise InputError(
            f"the tokenizer already has {len(taken)} tokens of semantic IDs ({taken[:3]}), so it belongs to an LC-Rec model; "
            "start from the tokenizer of a language model"
        )
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    # The id of a code is computed, never looked up, so the ids must be consecutive.
    vocabulary = tokenizer.get_vocab()
    if [vocabulary[word] for word in words] != list(range(first, first + len(words))):
        raise InputError(
            f"{type(tokenizer).__name__} does not give added tokens consecutive ids from {first}; use another backbone's "
            "tokenizer"
        )
    return first
