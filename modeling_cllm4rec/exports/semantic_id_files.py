"""LC-Rec's semantic IDs as files that engines read: items and prompts as JSON, the trie as compressed sparse rows, a decoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.exports import reference_decoder
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.prompts import semantic_id_tokens
from modeling_cllm4rec.tokenization.tokenization_lcrec import LEVEL_LETTERS

ITEMS_FILE = "semantic_ids.json"
"""Items, tokens and prompts in an export of LC-Rec."""
TRIE_FILE = "semantic_id_trie.safetensors"
"""The trie of semantic IDs in an export, as compressed sparse rows."""
CODES_FILE = "sid2item.json"
"""Codes -> item id in an export."""
DECODER_FILE = "decode.py"
"""The reference decoder of an export."""
TOKEN_FORMAT = "<{level}_{code}>"
"""Names of the tokens of semantic IDs in a tokenizer, with the letter of a level and a code."""


def token_names(num_levels: int, codebook_size: int, token_format: str = TOKEN_FORMAT) -> list[str]:
    """Return the names of all tokens of semantic IDs, in the order of their ids.

    Raises:
        InputError: a format without place for the level or the code.

    Example:
        >>> token_names(2, 2, "<s_{level}_{code}>")
        ['<s_a_0>', '<s_a_1>', '<s_b_0>', '<s_b_1>']
    """
    if token_format.count("{level}") != 1 or token_format.count("{code}") != 1:
        raise InputError(
            f"token_format is {token_format!r}; it must hold {{level}} and {{code}} once each, as {TOKEN_FORMAT!r} does"
        )
    levels = [token_format.replace("{level}", letter) for letter in LEVEL_LETTERS[:num_levels]]
    return [level.replace("{code}", str(code)) for level in levels for code in range(codebook_size)]


def trie_arrays(trie: ItemTrie, first_index_token: int) -> dict[str, np.ndarray]:
    """Return a trie as compressed sparse rows. Nodes are numbered level by level from the root, 0.

    Args:
        trie: the semantic IDs of all items.
        first_index_token: token id of code 0 of the first level.

    Returns:
        `row_pointers` (nodes + 1,): node i has the edges row_pointers[i] to row_pointers[i + 1]; `tokens` (edges,): the token
        of each edge, ascending within a node; `children` (edges,): the node that it leads to; `leaf_items` (nodes,): row of
        the item, -1 for inner nodes. All int32.

    Example:
        >>> arrays = trie_arrays(ItemTrie(np.array([[1, 0], [0, 2], [1, 1]]), codebook_size=3), first_index_token=10)
        >>> {name: array.tolist() for name, array in arrays.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'row_pointers': [0, 2, 3, 5, 5, 5, 5], 'tokens': [10, 11, 15, 13, 14], 'children': [1, 2, 3, 4, 5],
         'leaf_items': [-1, -1, -1, 1, 0, 2]}
    """
    tokens, counts = [], []
    for level in range(trie.num_levels):
        counts.append(trie.first_child[level].diff())
        nodes = torch.arange(trie.num_nodes(level + 1), device=trie.device)
        tokens.append(first_index_token + level * trie.codebook_size + trie.codes(level + 1, nodes))
    counts.append(torch.zeros_like(trie.leaf_items))
    # Numbered level by level, the children of all nodes are nodes 1, 2, ... in the order of the edges.
    pointers = torch.cat([torch.zeros_like(counts[0]), torch.cat(counts).cumsum(0)])
    edges = int(pointers[-1])
    inner = torch.full((len(pointers) - 1 - trie.num_items,), -1, device=trie.device)
    arrays = {
        "row_pointers": pointers,
        "tokens": torch.cat(tokens),
        "children": torch.arange(1, edges + 1),
        "leaf_items": torch.cat([inner, trie.leaf_items]),
    }
    return {name: array.cpu().numpy().astype(np.int32) for name, array in arrays.items()}


def write_semantic_ids(model: LCRecForRecommendation, folder: Path, token_format: str = TOKEN_FORMAT) -> dict[str, Any]:
    """Write the items with their tokens, the prompts, the trie, the codes and the reference decoder.

    Args:
        model: an aligned LC-Rec model with its catalogue.
        folder: the output folder, which exists.
        token_format: names of the tokens.

    Returns:
        The contents of `semantic_ids.json` without its items.
    """
    config, codes = model.config, model.semantic_ids.codes
    catalogue = model.require_catalogue()
    names = np.array(token_names(config.num_levels, config.codebook_size, token_format))
    tokens = semantic_id_tokens(codes, config.first_index_token, config.codebook_size)
    about = {
        "format": 1,
        "levels": config.num_levels,
        "codebook_size": config.codebook_size,
        "first_token": config.first_index_token,
        "context_length": config.context_length,
        "max_history": config.max_history,
        "beams": config.search_beams,
        "separator": list(config.separator or []),
        "prompts": config.recommendation_prompts,
        "query_prompts": config.query_prompts,
    }
    head = json.dumps(about, ensure_ascii=False)
    with open(folder / ITEMS_FILE, "w", encoding="utf-8") as file:  # an item a line: it can be read, searched and compared
        file.write(head[:-1] + ', "items": [\n')
        file.write(",\n".join(_item_lines(catalogue, tokens, names[tokens - config.first_index_token])))
        file.write("\n]}\n")
    save_file(trie_arrays(model.trie, config.first_index_token), folder / TRIE_FILE)
    by_codes = {",".join(map(str, row)): item for row, item in zip(codes.tolist(), catalogue.ids.array.to_pylist(), strict=True)}
    (folder / CODES_FILE).write_text(json.dumps(by_codes, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(reference_decoder.__file__, folder / DECODER_FILE)
    return about


def _item_lines(catalogue: Catalogue, tokens: np.ndarray, names: np.ndarray) -> list[str]:
    ids = catalogue.ids.array.to_pylist()
    titles = [None] * len(ids)
    if "title" in catalogue.table.column_names:
        titles = catalogue.table["title"].to_pylist()
    rows = zip(ids, titles, names.tolist(), tokens.tolist(), strict=True)
    return [
        json.dumps(
            {"item_id": item, **({} if title is None else {"title": title}), "tokens": words, "token_ids": numbers},
            ensure_ascii=False,
        )
        for item, title, words, numbers in rows
    ]


__all__ = [
    "CODES_FILE",
    "DECODER_FILE",
    "ITEMS_FILE",
    "TOKEN_FORMAT",
    "TRIE_FILE",
    "token_names",
    "trie_arrays",
    "write_semantic_ids",
]
