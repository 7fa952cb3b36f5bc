"""Users per second of our beam search, against `generate` held to real items the usual way, by a Python function.

    python recipes/benchmark.py decode --model path/of/a/causal-lm --index data/mine-index/index.parquet

Model, prompts, beams and machine are the same in all schemes; they run in one process, in turn, and their items are compared
before they are timed. The words of the prompts are random: what is measured does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
)

from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, Catalogue
from modeling_cllm4rec.hub.model_card import LIBRARIES, machine
from modeling_cllm4rec.lcrec.beam_search import beam_search
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie, TrieLogitsProcessor
from modeling_cllm4rec.lcrec.prompts import semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, codes_of

USUAL, PROCESSOR, OURS = "generate, Python function", "generate, our processor", "ours"
SCHEMES = (USUAL, PROCESSOR, OURS)
WORDS_OF_A_PROMPT = 12
MASK_VOCABULARY = 32_000
LARGEST_DIFFERENCE = 1e-3  # nats

Prompts = list[np.ndarray]
Decoder = Callable[[Prompts, int], tuple[np.ndarray, np.ndarray]]
"""Prompts and beams to (prompts, beams) item indices and scores, best first."""


class DictTrie:
    """The indices as dictionaries in dictionaries.

    Example:
        >>> DictTrie([[5, 8], [5, 9]]).get([5])
        [8, 9]
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.root: dict[int, Any] = {}
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def get(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow; of what is no prefix, the first tokens (`generate` fills up with such beams)."""
        node = self.root
        for token in prefix:
            if token not in node:
                return list(self.root)
            node = node[token]
        return list(node)


class World(NamedTuple):
    """What all schemes work on."""

    model: PreTrainedModel
    codes: np.ndarray  # (J, H)
    codebook_size: int
    first_index_token: int
    trie: ItemTrie
    dictionary: DictTrie

    def pad(self, prompts: Prompts, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T) and mask, padded on one side."""
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
            ids[row, place], mask[row, place] = prompt, 1
        device = self.model.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def random_codes(num_items: int, num_levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """(J, H) codes, no two rows alike."""
    if num_items > codebook_size**num_levels:
        raise ValueError(f"{num_levels} levels of {codebook_size} codes cannot tell {num_items} items apart; raise --levels")
    numbers = np.random.default_rng(seed).choice(codebook_size**num_levels, num_items, replace=False)
    return np.stack([numbers // codebook_size**level % codebook_size for level in range(num_levels)], axis=1)


def make_world(arguments: argparse.Namespace) -> World:
    """The model with index tokens of random rows, and the index in both forms."""
    torch.manual_seed(arguments.seed)
    if arguments.index is not None:
        index = SemanticIds.load(Path(arguments.index))[0]
        codes, codebook_size = index.codes.astype(np.int64), index.codebook_size
    else:
        codebook_size = arguments.codebook_size
        codes = random_codes(arguments.items, arguments.levels, codebook_size, arguments.seed)
    if arguments.model is None:
        shape: dict[str, Any] = {"vocab_size": 8000, "n_embd": 384, "n_layer": 6, "n_head": 12, "n_positions": 512}
        model = AutoModelForCausalLM.from_config(GPT2Config(**shape))
    else:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    first = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(first + codes.shape[1] * codebook_size, mean_resizing=False)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    model = model.to(arguments.device).eval()
    trie = ItemTrie(codes, codebook_size).to(model.device)
    return World(model, codes, codebook_size, first, trie, DictTrie(semantic_id_tokens(codes, first, codebook_size).tolist()))


def random_prompts(world: World, number: int, history: int, seed: int) -> Prompts:
    """Some words and a history of 1 to `history` items, each closed by a separator."""
    random = np.random.default_rng(seed)
    prompts = []
    for _ in range(number):
        words = random.integers(1, world.first_index_token, WORDS_OF_A_PROMPT)
        items = random.integers(0, len(world.codes), random.integers(1, history + 1))
        tokens = semantic_id_tokens(world.codes[items], world.first_index_token, world.codebook_size)
        prompts.append(np.concatenate([words, np.pad(tokens, ((0, 0), (0, 1)), constant_values=words[0]).flatten()]))
    return prompts


def decoders(world: World) -> dict[str, Decoder]:
    """Scheme -> how it decodes."""
    index = {tuple(row): item for item, row in enumerate(world.codes.tolist())}
    offsets = world.first_index_token + world.codebook_size * np.arange(world.codes.shape[1])

    def generate(prompts: Prompts, num_beams: int, usual: bool) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = world.pad(prompts, "left")
        length = ids.shape[1]
        rule: dict[str, Any]
        if usual:
            rule = {"prefix_allowed_tokens_fn": lambda row, sentence: world.dictionary.get(sentence[length:].tolist())}
        else:
            rule = {"logits_processor": [TrieLogitsProcessor(world.trie, world.first_index_token, length)]}
        written: Any = world.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=len(offsets),
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **rule,
        )
        codes = written.sequences[:, length:].cpu().numpy() - offsets
        items = np.array([index[tuple(row)] for row in codes.tolist()]).reshape(len(prompts), num_beams)
        scores = written.sequences_scores * len(offsets)  # `generate` divides by the tokens that it writes
        return items, scores.float().cpu().numpy().reshape(items.shape)

    def ours(prompts: Prompts, num_beams: int) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = world.pad(prompts, "right")
        items, scores, _ = beam_search(world.model, ids, mask, world.trie, world.first_index_token, num_beams)
        return items.cpu().numpy(), scores.cpu().numpy()

    return {
        USUAL: lambda prompts, num_beams: generate(prompts, num_beams, usual=True),
        PROCESSOR: lambda prompts, num_beams: generate(prompts, num_beams, usual=False),
        OURS: ours,
    }


def compare_items(schemes: dict[str, Decoder], prompts: Prompts, num_beams: int) -> dict[str, float]:
    """Share of lists that are the same in all schemes, and the largest difference of the scores at one place.

    Lists may differ where two items have equal scores but for rounding.

    Raises:
        RuntimeError: a scheme that finds items of other scores: its speed would not compare.
    """
    results = {name: decode(prompts, num_beams) for name, decode in schemes.items()}
    items, scores = results[OURS]
    same = np.ones(len(prompts), dtype=bool)
    difference = 0.0
    for name, (theirs, their_scores) in results.items():
        same &= (theirs == items).all(axis=1)
        difference = max(difference, float(np.abs(their_scores - scores).max()))
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(f"{num_beams} beams: the scores of {name!r} differ from ours by {difference} nats")
    return {"same_lists": float(same.mean()), "largest_difference": difference}


def time_schemes(
    schemes: dict[str, Decoder], prompts: Prompts, arguments: argparse.Namespace
) -> dict[int, dict[str, list[float]]]:
    """Beams -> scheme -> users per second in each repeat; the schemes take turns, every other time in reverse."""
    rates: dict[int, dict[str, list[float]]] = {beams: {name: [] for name in schemes} for beams in arguments.beams}
    batches = [prompts[start : start + arguments.batch_size] for start in range(0, len(prompts), arguments.batch_size)]
    with tqdm(total=len(rates) * arguments.repeats * len(schemes), desc="decoding", unit="pass") as bar:
        for repeat in range(arguments.repeats):
            for beams in arguments.beams:
                for name in list(schemes)[:: -1 if repeat % 2 else 1]:
                    start = time.perf_counter()
                    for batch in batches:
                        schemes[name](batch, beams)
                    rates[beams][name].append(len(prompts) / (time.perf_counter() - start))
                    bar.update()
    return rates


def summarize(rates: dict[int, dict[str, list[float]]]) -> dict[int, dict[str, dict[str, float]]]:
    """Beams -> scheme -> users per second and the ratio to the usual way (median, least and most)."""
    summary: dict[int, dict[str, dict[str, float]]] = {}
    for beams, schemes in rates.items():
        summary[beams] = {}
        for name, repeats in schemes.items():
            ratio = np.array(repeats) / np.array(schemes[USUAL])
            summary[beams][name] = {
                "users_per_second": float(np.median(repeats)),
                "ratio": float(np.median(ratio)),
                "least_ratio": float(ratio.min()),
                "most_ratio": float(ratio.max()),
            }
    return summary


def time_masks(num_items: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one step's mask (mean over the levels of an index) and seconds to build, of both kinds of tree.

    Also the seconds to read a catalogue from its file, check it and build the tree, as a model does before its first answer.
    """
    codes = random_codes(num_items, arguments.levels, arguments.codebook_size, arguments.seed)
    tokens = semantic_id_tokens(codes, MASK_VOCABULARY - codes.shape[1] * arguments.codebook_size, arguments.codebook_size)
    first = int(tokens[0, 0] - codes[0, 0])
    start = time.perf_counter()
    trie = ItemTrie(codes, arguments.codebook_size).to(arguments.device)
    build = {"trie": time.perf_counter() - start}
    lists = tokens.tolist()
    start = time.perf_counter()
    dictionary = DictTrie(lists)
    build["function"] = time.perf_counter() - start
    chosen = np.random.default_rng(arguments.seed).integers(0, num_items, arguments.mask_rows)
    written = torch.from_numpy(tokens[chosen]).to(arguments.device)
    scores = torch.zeros(arguments.mask_rows, MASK_VOCABULARY, device=arguments.device)
    rules: dict[str, LogitsProcessor] = {
        "trie": TrieLogitsProcessor(trie, first, prompt_length=0),
        "function": PrefixConstrainedLogitsProcessor(lambda row, sentence: dictionary.get(sentence.tolist()), num_beams=1),
    }
    row: dict[str, Any] = {"items": num_items, "load_s": time_loading(codes, arguments.codebook_size)}
    for name, rule in rules.items():
        steps = [_seconds_of_a_step(rule, written, scores) for _ in range(1 + arguments.repeats)][1:]
        row |= {f"{name}_ms": 1e3 * float(np.median(steps)), f"{name}_build_s": build[name]}
    return row


def time_loading(codes: np.ndarray, codebook_size: int) -> float:
    """Seconds from a catalogue's file to a checked index and its tree."""
    ids = pa.array([f"item {number}" for number in range(len(codes))])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), pa.int32()), codes.shape[1])
    with TemporaryDirectory() as folder:
        Catalogue(pa.table({"item_id": ids, "codes": lists.cast(pa.list_(pa.int32()))})).save(folder)
        start = time.perf_counter()
        catalogue = Catalogue.load(Path(folder) / CATALOGUE_FILE)
        _ = catalogue.ids.fingerprint
        ItemTrie(SemanticIds(codes_of(catalogue.table["codes"]), codebook_size).codes, codebook_size)
        return time.perf_counter() - start


def _seconds_of_a_step(rule: LogitsProcessor, written: torch.Tensor, scores: torch.Tensor) -> float:
    start = time.perf_counter()
    for level in range(written.shape[1]):
        masked = rule(written[:, :level], scores)
    masked[0, 0].item()  # waits for an accelerator
    return (time.perf_counter() - start) / written.shape[1]


def as_markdown(report: dict[str, Any]) -> str:
    """The report's tables."""
    setting = report["setting"]
    lines = [
        f"{setting['machine']}, {setting['device']}, {setting['threads']} threads; torch {setting['versions']['torch']}, "
        f"transformers {setting['versions']['transformers']}.",
        "",
        f"Users per second (ratio to the usual way): {setting['model']}, {setting['items']:,} items, {setting['levels']} levels "
        f"of {setting['codebook_size']} codes; {setting['users']} prompts of {setting['mean_tokens']:.0f} tokens on average, "
        f"batches of {setting['batch_size']}, median of {setting['repeats']}.",
        "",
        "| beams | " + " | ".join(SCHEMES) + " | same lists | largest difference of scores |",
        "|---" * (3 + len(SCHEMES)) + "|",
    ]
    for beams, schemes in report["decoding"].items():
        cells = [f"{row['users_per_second']:.2f} ({row['ratio']:.2f}x)" for row in schemes.values()]
        check = report["checks"][beams]
        lines.append(
            f"| {beams} | " + " | ".join(cells) + f" | {check['same_lists']:.1%} | {check['largest_difference']:.1g} nats |"
        )
    if report["masks"]:
        lines += [
            "",
            f"The mask of one step for {setting['mask_rows']} beams over {MASK_VOCABULARY:,} tokens, and the time to build it.",
            "",
            "| items | Python function, ms | our processor, ms | dictionaries built in s | our tree built in s | load in s |",
            "|---" * 6 + "|",
        ]
        for row in report["masks"]:
            times = (row["function_ms"], row["trie_ms"], row["function_build_s"], row["trie_build_s"], row["load_s"])
            lines.append(f"| {row['items']:,} | " + " | ".join(f"{value:.3g}" for value in times) + " |")
    return "\n".join(lines) + "\n"


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write `decode.json` and `decode.md` into the output folder.

    Raises:
        ValueError: numbers below 1, more items than indices, or more beams than items.
    """
    for name in ("items", "levels", "codebook_size", "users", "history", "batch_size", "mask_rows", "repeats"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be 1 or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    world = make_world(arguments)
    for beams in arguments.beams:
        if not 1 <= beams <= len(world.codes):
            raise ValueError(f"--beams has {beams}; with {len(world.codes)} items it must lie between 1 and that")
    prompts = random_prompts(world, arguments.users, arguments.history, arguments.seed)
    schemes = decoders(world)
    checks = {beams: compare_items(schemes, prompts[: arguments.batch_size], beams) for beams in arguments.beams}
    rates = time_schemes(schemes, prompts, arguments)
    report = {
        "setting": {
            "model": Path(arguments.model).name if arguments.model else "GPT-2 shape, 6 layers of width 384, random",
            "items": len(world.codes),
            "levels": world.codes.shape[1],
            "codebook_size": world.codebook_size,
            "mean_tokens": float(np.mean([len(prompt) for prompt in prompts])),
            **{name: getattr(arguments, name) for name in ("users", "history", "batch_size", "repeats", "mask_rows", "seed")},
            "device": arguments.device,
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in LIBRARIES},
        },
        "checks": checks,
        "rates": rates,
        "decoding": summarize(rates),
        "masks": [time_masks(size, arguments) for size in tqdm(arguments.mask_items, desc="masks")],
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "decode.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (output / "decode.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `benchmark.py decode`."""
    command.add_argument("--model", help="name or path of a causal language model (default: GPT-2 shape, random weights)")
    command.add_argument("--index", help="index.parquet of a catalogue (default: random codes)")
    command.add_argument("--items", type=int, default=10_000, help="items of the random index")
    command.add_argument("--levels", type=int, default=4, help="levels of random indices")
    command.add_argument("--codebook-size", type=int, default=256, help="codes of a level of random indices")
    command.add_argument("--beams", nargs="+", type=int, default=[5, 10, 20, 50], help="numbers of beams")
    command.add_argument("--users", type=int, default=32, help="prompts of a timed pass")
    command.add_argument("--history", type=int, default=20, help="most items of a prompt")
    command.add_argument("--batch-size", type=int, default=8, help="prompts of a batch")
    command.add_argument("--repeats", type=int, default=3, help="timed passes of each scheme, of which the median counts")
    command.add_argument("--mask-items", nargs="*", type=int, default=[10**4, 10**5, 10**6], help="sizes to time masks for")
    command.add_argument("--mask-rows", type=int, default=160, help="beams of all prompts when masks are timed")
    command.add_argument("--output", default="reports/decode", help="folder for decode.json and decode.md, which are replaced")
    command.add_argument("--device", default="cpu", help="device of torch")
    command.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    command.add_argument("--seed", type=int, default=0, help="start of all random numbers")
