"""Decode LC-Rec from the files of an export alone: `python decode.py ITEM_ID ...` prints the recommendations for a history.

Beam search over the trie of semantic IDs, without a cache. The score of an item is ln p of its semantic ID, over the whole
vocabulary. This file needs numpy and safetensors; also transformers and torch for a causal LM, or onnxruntime for a graph.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

LogProbs = Callable[[np.ndarray], np.ndarray]


def causal_lm(folder: Path) -> LogProbs:
    """Return a function from (n, T) token ids to (n, N) ln p of the next token, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda ids: torch.no_grad()(model)(torch.from_numpy(ids)).logits[:, -1].log_softmax(-1).numpy()


def onnx_graph(folder: Path) -> LogProbs:
    """Return a function from (n, T) token ids to (n, tokens) ln p of the semantic ID tokens, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")))
    return lambda ids: session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


def prompt_of(about: dict[str, Any], history: Sequence[int]) -> list[int]:
    """Return the token ids of the prompt for a history of rows of `items`; the oldest items that do not fit are left out."""
    pieces, separator = about["prompts"][0], about["separator"]
    words = sum(len(piece) for piece in pieces if piece != "items")
    room = about["context_length"] - about["levels"] - words + (0 if pieces[-1] == "items" else len(separator))
    fit = min(about["max_history"], room // (about["levels"] + len(separator)))
    if fit < 1 or not history:
        raise ValueError(f"history has {len(history)} items and {fit} fit into the prompt; at least one must be there and fit")
    history = history[-fit:]
    listed = [token for item in history for token in [*about["items"][item]["token_ids"], *separator]]
    if pieces[-1] != "items":  # a history that ends the prompt is also closed by a separator: the next item goes on
        listed = listed[: len(listed) - len(separator)]
    return [token for piece in pieces for token in (listed if piece == "items" else piece)]


def search(
    log_probs: LogProbs, trie: dict[str, np.ndarray], first: int, prompt: list[int], beams: int, seen: Sequence[int] = ()
) -> list[tuple[float, int]]:
    """Return [(score, row of `items`), ...] of the items that `beams` beams find, best first.

    Args:
        log_probs: a function of `causal_lm` or `onnx_graph`; first: token id of its first column.
        trie: node i has the edges row_pointers[i] to row_pointers[i + 1] with tokens, children; leaf_items is -1 inside.
        seen: rows of items that are left out.
    """
    pointers, children, leaves = trie["row_pointers"], trie["children"], trie["leaf_items"]
    open_nodes = (leaves >= 0) & ~np.isin(leaves, list(seen))
    for node in range(len(leaves) - 1, -1, -1):  # children have higher numbers: a branch of seen items takes no beam
        open_nodes[node] |= open_nodes[children[pointers[node] : pointers[node + 1]]].any()
    alive: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]
    found: list[tuple[float, int]] = []
    while alive:
        rows = log_probs(np.array([prompt + written for _, _, written in alive], np.int64))
        grown = [
            (score + float(row[trie["tokens"][edge] - first]), int(children[edge]), [*written, int(trie["tokens"][edge])])
            for (score, node, written), row in zip(alive, rows, strict=True)
            for edge in range(pointers[node], pointers[node + 1])
            if open_nodes[children[edge]]
        ]
        alive = sorted(grown, key=lambda beam: (-beam[0], leaves[beam[1]], beam[1]))[:beams]
        found = [(score, int(leaves[node])) for score, node, _ in alive]
        alive = [beam for beam in alive if leaves[beam[1]] < 0]
    return found


def main(words: list[str] | None = None) -> None:
    """Print the recommendations as JSON, one a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("history", nargs="+", help="item ids, oldest first")
    parser.add_argument("--folder", default=Path(__file__).parent, help="folder of the export")
    parser.add_argument("--beams", type=int, help="beams of the search (default: those of the model)")
    parser.add_argument("--k", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--include-seen", action="store_true", help="also recommend items of the history")
    given = parser.parse_args(words)
    about = json.loads(Path(given.folder, "semantic_ids.json").read_text(encoding="utf-8"))
    rows = {str(item["item_id"]): number for number, item in enumerate(about["items"])}
    history = [rows[word] for word in given.history]
    graph = Path(given.folder, "model.onnx").exists()
    log_probs, first = (onnx_graph(given.folder), about["first_token"]) if graph else (causal_lm(given.folder), 0)
    trie = load_file(Path(given.folder, "semantic_id_trie.safetensors"))
    seen = () if given.include_seen else history
    found = search(log_probs, trie, first, prompt_of(about, history), given.beams or about["beams"], seen)
    for rank, (score, item) in enumerate(found[: given.k], start=1):
        print(json.dumps({"item": about["items"][item]["item_id"], "rank": rank, "score": score}))


if __name__ == "__main__":
    main()
