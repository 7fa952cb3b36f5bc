"""Start rows of the tokens of semantic IDs from the words of their items, before the alignment trains them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation


@torch.no_grad()
def start_semantic_id_rows(model: LCRecForRecommendation, item_tokens: Sequence[np.ndarray], noise: float = 0.1) -> None:
    """Start the row of each index token from the words of the items that bear it, instead of at random.

    Args:
        item_tokens: token ids of each item's words, empty where it has none.
        noise: standard deviation of what is added, as a share of the mean rows' own, so that no two tokens start alike.

    A token that no item with words bears keeps its random row.
    """
    known = np.array([len(tokens) > 0 for tokens in item_tokens])
    tokens = torch.from_numpy(model.tokens_of(known))
    owner = torch.from_numpy(np.repeat(np.arange(known.sum()), [len(words) for words in item_tokens if len(words)]))
    words = torch.from_numpy(np.concatenate([words for words in item_tokens if len(words)]).astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    for weight in model.token_matrices:
        table = weight.detach().float().cpu()
        count = torch.bincount(owner).clamp(min=1)[:, None]
        items = torch.zeros(int(known.sum()), table.shape[1]).index_add(0, owner, table[words]) / count
        sums = torch.zeros_like(table).index_add(0, tokens.flatten(), items.repeat_interleave(tokens.shape[1], 0))
        bearers = torch.bincount(tokens.flatten(), minlength=len(table))
        borne = bearers > 0
        rows = sums[borne] / bearers[borne, None]
        rows += noise * rows.std() * torch.randn(rows.shape, generator=generator)
        weight[borne.to(weight.device)] = rows.to(weight)
