"""Index tokens of LC-Rec in a language model's own tokenizer: `<a_12><b_3>...`, real added tokens."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.lcrec.semantic_ids import semantic_id_token

__all__ = ["add_semantic_id_tokens"]


def add_semantic_id_tokens(tokenizer: PreTrainedTokenizerBase, num_levels: int, codebook_size: int) -> int:
    """Add the tokens of H levels of K codes to a tokenizer, in place.

    They are special tokens, so that a literal `<a_12>` in an item's text stays text where it is encoded with
    `split_special_tokens=True`, as the corpora do.

    Args:
        num_levels: H; codebook_size: K.

    Returns:
        The id of code 0 of the first level; code c of level h has this id + h * K + c.

    Raises:
        ValueError: the tokenizer has such tokens already, or does not give them ids in a row.

    Example:
        >>> first = add_semantic_id_tokens(tokenizer, num_levels=4, codebook_size=256)  # doctest: +SKIP
        >>> tokenizer.convert_tokens_to_ids("<b_3>") - first  # doctest: +SKIP
        259
    """
    words = [semantic_id_token(level, code) for level in range(num_levels) for code in range(codebook_size)]
    known = set(tokenizer.get_vocab())
    taken = [word for word in words if word in known]
    if taken:
        raise ValueError(
            f"the tokenizer has {len(taken)} of the index tokens already ({taken[:3]}): it is that of an LC-Rec model; "
            "start from the tokenizer of a language model"
        )
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    vocabulary = tokenizer.get_vocab()
    if [vocabulary[word] for word in words] != list(range(first, first + len(words))):
        raise ValueError(
            f"{type(tokenizer).__name__} does not give added tokens ids in a row from {first}; use another backbone's tokenizer"
        )
    return first
