"""Constrained beam search and exact scores over the semantic IDs of a catalogue, with one cache for all beams of a prompt.

This file is copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..core.errors import InputError
from ..core.top_items import top_items
from .constrained_decoding import CandidateItems, ItemTrie, SeenItems
from .prompt_tree import PromptTree

MOST_NODES = 2**17
"""Prefixes of semantic IDs that may be read for one prompt: about a minute on a CPU core with a small language model."""


class FoundItems(NamedTuple):
    """Items found by a search with n beams, best first; fewer than n where a row has fewer candidates.

    Attributes:
        items: (B, n) int64 item indices, -1 for none.
        scores: (B, n) float32, -inf for none.
        codes: (B, n, H) int64 codes of the beams' tokens, -1 for none.
    """

    items: torch.Tensor
    scores: torch.Tensor
    codes: torch.Tensor


@torch.no_grad()
def beam_search(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    num_beams: int | Sequence[int],
    seen: SeenItems | None = None,
    candidates: Any = None,
) -> FoundItems:
    """Return the likeliest candidates after each prompt by constrained beam search, without duplicates, best first.

    The score of an item is ln p of its semantic ID: the sum over levels of the log softmax over the whole vocabulary, as
    `generate` and `score_all` compute it, so the scores are exact. With as many beams as candidates none is missed. Of equal
    scores the lower item_index comes first. A branch without candidates never takes a beam.

    Args:
        language_model: any causal language model, in evaluation mode, with attention "eager" or "sdpa".
        input_ids: (B, T) prompts, padded on the right or on the left; attention_mask: (B, T) ones for real tokens.
        trie: the semantic IDs of all items, on the model's device.
        first_index_token: token id of code 0 of level 0; code c of level h has `first_index_token + h * K + c`.
        num_beams: n, or the number of beams of each level, the last of which is n; neither memory nor the number of items
            changes it.
        seen: seen items of each row, which are excluded; candidates: item indices that all rows choose from.

    Raises:
        InputError: num_beams below 1 or for another number of levels, no candidates at all, a prompt that is empty or leaves no
            room for a semantic ID, a model in training mode or with another kind of attention.
    """
    return bounded_search(language_model, input_ids, attention_mask, trie, first_index_token, num_beams, seen, candidates)[0]


@torch.no_grad()
def bounded_search(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    num_beams: int | Sequence[int],
    seen: SeenItems | None = None,
    candidates: Any = None,
) -> tuple[FoundItems, torch.Tensor]:
    """As `beam_search`, with a bound on what it may have missed.

    Returns:
        What it found, and the (B,) highest score of a prefix that was dropped, -inf where none was. No code raises the score of a
        prefix, so no item that was not found is likelier than that.
    """
    widths = beams_of_levels(num_beams, trie.num_levels)
    rows = len(input_ids)
    pruned = trie.candidates(rows, seen, candidates)
    tree = PromptTree(language_model, input_ids, attention_mask, trie, first_index_token)
    bound = torch.full((rows,), float("-inf"), device=trie.device)
    if not pruned.rows_with_items().any():
        nothing = torch.full((rows, widths[-1], trie.num_levels), -1, device=trie.device)
        return FoundItems(nothing[..., 0], torch.full(nothing.shape[:2], float("-inf"), device=trie.device), nothing), bound
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=trie.device)
    scores = torch.zeros(rows, 1, device=trie.device)
    log_probs = tree.prompt_log_probs()[:, None]
    visible = torch.zeros(rows, 1, 0, dtype=torch.bool, device=trie.device)
    codes = torch.zeros(rows, 1, 0, dtype=torch.int64, device=trie.device)
    for level, width in enumerate(widths, start=1):
        nodes, scores, parents, dropped = _expand(pruned, level, nodes, scores, log_probs, width)
        bound = torch.maximum(bound, dropped)
        written = trie.codes(level, nodes.clamp(min=0))
        codes = torch.cat([codes.take_along_dim(parents[..., None], dim=1), written[..., None]], dim=2)
        if level < trie.num_levels:
            # The cache keeps the tokens of all earlier beams, also of those that were dropped. A beam sees the columns that
            # its parent saw, which are its own prefix, and itself; columns of other branches stay hidden.
            own = torch.eye(nodes.shape[1], dtype=torch.bool, device=trie.device).expand(rows, -1, -1)
            above = visible.take_along_dim(parents[..., None], dim=1)
            visible = torch.cat([above, own], dim=2)
            states = tree.read(tree.tokens(level, nodes.clamp(min=0)), torch.full_like(nodes[0], level), visible)
            log_probs = tree.code_log_probs(states, level + 1)
    missing = widths[-1] - nodes.shape[1]
    items = torch.where(nodes >= 0, trie.leaf_items[nodes.clamp(min=0)], -1)
    codes = codes.masked_fill(nodes[..., None] < 0, -1)
    found = FoundItems(
        torch.nn.functional.pad(items, (0, missing), value=-1),
        torch.nn.functional.pad(scores, (0, missing), value=float("-inf")),
        torch.nn.functional.pad(codes, (0, 0, 0, missing), value=-1),
    )
    return found, bound


def beams_of_levels(num_beams: int | Sequence[int], num_levels: int) -> list[int]:
    """Return the number of beams of each level.

    Raises:
        InputError: a number below 1, or another number of numbers than levels.

    Example:
        >>> beams_of_levels(20, 3), beams_of_levels([50, 30, 20], 3)
        ([20, 20, 20], [50, 30, 20])
    """
    widths = [int(one) for one in num_beams] if isinstance(num_beams, Sequence) else [num_beams] * num_levels
    if len(widths) != num_levels:
        raise InputError(f"num_beams is {widths}; give one number, or {num_levels}, one for each level of a semantic ID")
    if min(widths) < 1:
        raise InputError(f"num_beams is {num_beams}; it must be 1 or more")
    return widths


@torch.no_grad()
def score_all(
    language_model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: ItemTrie,
    first_index_token: int,
    nodes_at_a_time: int = 256,
    most_nodes: int = MOST_NODES,
) -> torch.Tensor:
    """Return the exact ln p of the semantic ID of every item after each prompt.

    The trie is read in subtrees, each in one pass, so that a common prefix of items is read once. Where only the best items are
    needed, `exact_search.best_of_all` reads a small part of the trie.

    Args:
        nodes_at_a_time: nodes of the last level but one in a subtree; with those above them, at most H - 1 times as many
            tokens are fed for each prompt.
        most_nodes: prefixes of semantic IDs that may be read for each prompt.

    The other arguments and errors are those of `beam_search`.

    Returns:
        (B, J) float32.

    Raises:
        InputError: the trie has more prefixes than `most_nodes`.
    """
    if nodes_at_a_time < 1:
        raise InputError(f"nodes_at_a_time is {nodes_at_a_time}; it must be 1 or more")
    nodes = sum(trie.num_nodes(level) for level in range(1, trie.num_levels))
    if nodes > most_nodes:
        raise InputError(
            f"the scores of all {trie.num_items:,} items need {nodes:,} prefixes of semantic IDs to be read for each user, and "
            f"the most is {most_nodes:,}; search for the best items with num_beams, or align a model with an item head, which "
            "scores all items in one pass"
        )
    tree = PromptTree(language_model, input_ids, attention_mask, trie, first_index_token)
    prompt_log_probs = tree.prompt_log_probs()  # (B, K)
    if trie.num_levels == 1:
        return prompt_log_probs[:, trie.codes(1, trie.item_leaves)]
    scores = torch.empty(len(input_ids), trie.num_items, device=trie.device)
    last = trie.num_levels - 1
    for start in range(0, trie.num_nodes(last), nodes_at_a_time):
        subtree = _subtree(trie, start, min(start + nodes_at_a_time, trie.num_nodes(last)))
        scores[:, trie.leaf_items[subtree[-1]]] = _score_subtree(tree, subtree, prompt_log_probs)
    return scores


@torch.no_grad()
def check_tree_attention(language_model: PreTrainedModel) -> None:
    """Check that the scores of a language model by `score_all` are those of its plain forward passes.

    They differ where its positions or attention ignore the mask and positions that are given, or where its logits are not
    its output layer applied to its decoder's states.

    Raises:
        InputError: a difference above 1e-3 on a probe of two prompts and eight semantic IDs; or see `beam_search`.
    """
    device = language_model.device
    codes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    prompts = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 0, 0]], device=device)
    lengths = (5, 3)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long().to(device)
    ours = score_all(language_model, prompts, mask, ItemTrie(codes, 2).to(device), first_index_token=0, nodes_at_a_time=3)
    tokens = (codes + 2 * torch.arange(3)).to(device)
    for row, length in enumerate(lengths):
        ids = torch.cat([prompts[row, :length].expand(len(tokens), -1), tokens], dim=1)
        log_probs = language_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().log_softmax(-1)
        plain = log_probs[:, length - 1 : -1].gather(2, tokens[..., None]).sum(dim=(1, 2))
        difference = float((ours[row] - plain).abs().max())
        if not difference <= 1e-3 * max(1.0, float(plain.abs().max())):
            raise InputError(
                f"{type(language_model).__name__} scores a semantic ID {difference:.2g} nats apart when beams share one cache: "
                "its attention, positions or logits are computed in a way that the search does not reproduce; choose another "
                "backbone"
            )


def _expand(
    candidates: CandidateItems,
    level: int,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    num_beams: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best nodes with candidates of a level in [1, H] below the beams of the level before.

    Args:
        nodes: (B, m), -1 where there is none, in ascending order, so that children are in the order of the leaves.
        scores: (B, m); log_probs: (B, m, K) of the codes of `level` after them.

    Returns:
        (B, n) nodes, scores and parents (positions among the m beams), where n is `num_beams`, or less if no row has that many
        children: in ascending order of nodes with -1 last; on level H best first, of equal scores the lower item. And the (B,)
        highest score of a child that is not among them, -inf where there is none.
    """
    trie = candidates.trie
    alive = (nodes >= 0).flatten().nonzero().flatten()
    place, child = trie.children(level - 1, nodes.flatten()[alive])
    parent = alive[place]
    row = parent // nodes.shape[1]
    kept = candidates.count(level, row, child) > 0
    child, parent, row = child[kept], parent[kept], row[kept]
    if level == trie.num_levels:
        # `top_items` prefers the earlier of equal scores, so children in the order of item_index break ties by item.
        by_item = (row * trie.num_items + trie.leaf_items[child]).argsort()
        child, parent, row = child[by_item], parent[by_item], row[by_item]
    total = scores.flatten()[parent] + log_probs.flatten(0, 1)[parent, trie.codes(level, child)]

    # Rows have different numbers of children: they are padded with -inf to one table of scores.
    counts = row.bincount(minlength=len(nodes))
    first = counts.cumsum(0) - counts
    table = torch.full((len(nodes), int(counts.max())), float("-inf"), device=total.device)
    table[row, torch.arange(len(row), device=row.device) - first[row]] = total
    best, found = top_items(table, min(num_beams, table.shape[1]))
    # A row with -1 has all of its children among the best, the one in column 0 as well.
    dropped = table.scatter(1, best.clamp(min=0), float("-inf")).amax(1)
    if level < trie.num_levels:
        # Back into the order of nodes, with the missing ones (-1) last: `children` then gives leaves in ascending order.
        best = best.masked_fill(best < 0, table.shape[1]).sort(dim=1).values
        best = best.masked_fill(best == table.shape[1], -1)
        found = table.gather(1, best.clamp(min=0)).masked_fill(best < 0, float("-inf"))
    chosen = (first[:, None] + best).clamp(min=0, max=len(child) - 1)
    missing = best < 0
    return child[chosen].masked_fill(missing, -1), found, (parent[chosen] % nodes.shape[1]).masked_fill(missing, 0), dropped


def _subtree(trie: ItemTrie, start: int, stop: int) -> list[torch.Tensor]:
    """Return the nodes of levels 1 to H around nodes start to stop of level H - 1: all above them and the leaves below."""
    last = trie.num_levels - 1
    leaves = trie.first_child[last][torch.tensor([start, stop], device=trie.device)].tolist()
    ends = {last: (start, stop), last + 1: tuple(leaves)}
    for level in range(last, 1, -1):
        below = torch.tensor([ends[level][0], ends[level][1] - 1], device=trie.device)
        low, high = trie.parents(level, below).tolist()
        ends[level - 1] = (low, high + 1)
    return [torch.arange(*ends[level], device=trie.device) for level in range(1, last + 2)]


def _score_subtree(tree: PromptTree, subtree: list[torch.Tensor], prompt_log_probs: torch.Tensor) -> torch.Tensor:
    """Return ln p of the semantic IDs of a subtree's leaves, from one pass: (B, leaves)."""
    trie, rows = tree.trie, len(prompt_log_probs)
    fed = subtree[:-1]  # leaves have no successor, so their tokens need not be read
    sizes = [len(nodes) for nodes in fed]
    above = [trie.parents(level, nodes) - subtree[level - 2][0] for level, nodes in enumerate(subtree[1:], start=2)]
    tokens = torch.cat([tree.tokens(level, nodes) for level, nodes in enumerate(fed, start=1)])
    levels = torch.arange(1, len(subtree), device=trie.device).repeat_interleave(torch.tensor(sizes, device=trie.device))
    # A node sees itself and whatever its parent sees; parents come first, so one pass over the levels fills the mask.
    visible = torch.eye(len(tokens), dtype=torch.bool, device=trie.device)
    for number in range(1, len(fed)):
        first = sum(sizes[:number])
        visible[first : first + sizes[number]] |= visible[first - sizes[number - 1] + above[number - 1]]
    states = tree.read(tokens.expand(rows, -1), levels, visible[None])
    tree.forget()
    scores = prompt_log_probs[:, trie.codes(1, subtree[0])]
    for level, (of_level, parents) in enumerate(zip(states.split(sizes, dim=1), above, strict=True), start=2):
        gained = tree.code_log_probs(of_level, level)[:, parents, trie.codes(level, subtree[level - 1])]
        scores = scores[:, parents] + gained
    return scores


__all__ = ["MOST_NODES", "FoundItems", "beam_search", "beams_of_levels", "bounded_search", "check_tree_attention", "score_all"]
