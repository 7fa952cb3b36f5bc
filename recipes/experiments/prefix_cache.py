"""Upper limit of what a cache of prompts would save for repeated questions to LC-Rec: the share of the prompt in a beam search.

    python recipes/experiments/prefix_cache.py --model runs/lcrec

It prints one line of JSON for each backbone and length of the prompt. A cache that keeps keys and values of a prompt saves at
most the pass over it, so a repeated question is faster by the factor `ratio` at most. Seconds are those of the CPU, one thread,
one question, the least of several runs. The backbones with random weights have the shapes of GPT-2 small and of eight layers of
Qwen2 0.5B.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from modeling_cllm4rec.core.language_model import evaluating
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.lcrec.beam_search import beam_search
from modeling_cllm4rec.lcrec.prompt_tree import PromptTree

RUNS = 5


def least_seconds(work: Callable[[], Any]) -> float:
    """Return the least CPU seconds of several runs."""
    found = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def measure(model: Any, backbone: Any, length: int, beams: int) -> dict[str, float]:
    """Return the seconds of the prompt's pass and of the whole search, the ratio, and the bytes that a cache would keep."""
    first, trie = model.config.first_index_token, model.trie
    ids = torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with evaluating(backbone):
        prompt = least_seconds(lambda: PromptTree(backbone, ids, mask, trie, first))
        whole = least_seconds(lambda: beam_search(backbone, ids, mask, trie, first, beams))
        layers: list[Any] = list(PromptTree(backbone, ids, mask, trie, first).cache.layers)
    kept = sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values))
    return {"prompt_s": prompt, "whole_s": whole, "ratio": whole / (whole - prompt), "MB": kept / 1e6}


def main() -> None:
    """Print the measurements."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", required=True, help="folder of an aligned LC-Rec model")
    flags.add_argument("--tokens", type=int, nargs="+", default=[34, 80, 120, 240], help="lengths of prompts")
    flags.add_argument("--beams", type=int, default=20, help="beams of the search")
    given = flags.parse_args()
    torch.set_num_threads(1)
    model = load_recommender(given.model, device="cpu")
    words = model.backbone.config.vocab_size
    shape: dict[str, Any] = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    backbones = {
        "own": model.backbone,
        "GPT-2 small": AutoModelForCausalLM.from_config(GPT2Config(vocab_size=words, bos_token_id=0, eos_token_id=0)),
        "8 layers of Qwen2 0.5B": AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=words, num_hidden_layers=8, **shape)),
    }
    for name, backbone in backbones.items():
        for length in given.tokens:
            print(json.dumps({"backbone": name, "tokens": length, **measure(model, backbone, length, given.beams)}), flush=True)


if __name__ == "__main__":
    main()
