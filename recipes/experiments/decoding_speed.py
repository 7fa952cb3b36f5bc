"""Users per second of our beam search, compared with `generate` constrained by a Python prefix function.

    python recipes/experiments/decoding_speed.py --model path/of/a/causal-lm --index data/mine-index/index.parquet

All schemes use the same model, prompts, beams and machine. They run in turn in one process, and their items are compared before
they are timed. The prompt words are random because decoding time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
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
from transformers.utils.logging import disable_progress_bar

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.catalogue import CATALOGUE_FILE, Catalogue
from modeling_cllm4rec.core.errors import InputError, RunError
from modeling_cllm4rec.hub.model_card import LIBRARIES, machine
from modeling_cllm4rec.lcrec.beam_search import beam_search
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie, TrieLogitsProcessor
from modeling_cllm4rec.lcrec.prompts import semantic_id_tokens
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, codes_of

PREFIX_FUNCTION, PROCESSOR, OURS = "generate, Python function", "generate, our processor", "ours"
SCHEMES = (PREFIX_FUNCTION, PROCESSOR, OURS)
PROMPT_WORDS = 12
MASK_VOCABULARY = 32_000
LARGEST_DIFFERENCE = 1e-3  # nats

Prompts = list[np.ndarray]
Decoder = Callable[[Prompts, int], tuple[np.ndarray, np.ndarray]]
"""Prompts and beams to (prompts, beams) item indices and scores, best first."""


class DictTrie:
    """A trie of semantic IDs as nested dictionaries.

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
        """Return the tokens that may follow `prefix`, or the first tokens if it is not in the trie.

        `generate` pads a group of beams with sequences that are not in the trie, and it fails on an empty list.
        """
        node = self.root
        for token in prefix:
            if token not in node:
                return list(self.root)
            node = node[token]
        return list(node)


class Setup(NamedTuple):
    """The model, the catalogue and both tries, shared by all schemes."""

    model: PreTrainedModel
    codes: np.ndarray  # (J, H)
    codebook_size: int
    first_index_token: int
    trie: ItemTrie
    dictionary: DictTrie

    def pad(self, prompts: Prompts, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (B, T) and their mask, padded on one side."""
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
            ids[row, place], mask[row, place] = prompt, 1
        device = self.model.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def random_codes(num_items: int, num_levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Return (J, H) codes without equal rows."""
    if num_items > codebook_size**num_levels:
        raise InputError(f"{num_levels} levels of {codebook_size} codes cannot identify {num_items} items; raise --levels")
    numbers = np.random.default_rng(seed).choice(codebook_size**num_levels, num_items, replace=False)
    return np.stack([numbers // codebook_size**level % codebook_size for level in range(num_levels)], axis=1)


def make_setup(arguments: argparse.Namespace) -> Setup:
    """Return the model with random rows for semantic ID tokens, and the trie in both forms."""
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
    return Setup(model, codes, codebook_size, first, trie, DictTrie(semantic_id_tokens(codes, first, codebook_size).tolist()))


def random_prompts(setup: Setup, number: int, history: int, seed: int) -> Prompts:
    """Return prompts of random words and 1 to `history` items, with a separator after each item."""
    random = np.random.default_rng(seed)
    prompts = []
    for _ in range(number):
        words = random.integers(1, setup.first_index_token, PROMPT_WORDS)
        items = random.integers(0, len(setup.codes), random.integers(1, history + 1))
        tokens = semantic_id_tokens(setup.codes[items], setup.first_index_token, setup.codebook_size)
        prompts.append(np.concatenate([words, np.pad(tokens, ((0, 0), (0, 1)), constant_values=words[0]).flatten()]))
    return prompts


def decoders(setup: Setup) -> dict[str, Decoder]:
    """Return the decoder of each scheme."""
    index = {tuple(row): item for item, row in enumerate(setup.codes.tolist())}
    offsets = setup.first_index_token + setup.codebook_size * np.arange(setup.codes.shape[1])

    def generate(prompts: Prompts, num_beams: int, prefix_function: bool) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = setup.pad(prompts, "left")
        length = ids.shape[1]
        rule: dict[str, Any]
        if prefix_function:
            rule = {"prefix_allowed_tokens_fn": lambda row, sentence: setup.dictionary.get(sentence[length:].tolist())}
        else:
            rule = {"logits_processor": [TrieLogitsProcessor(setup.trie, setup.first_index_token, length)]}
        written: Any = setup.model.generate(  # type: ignore[operator]
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
        ids, mask = setup.pad(prompts, "right")
        items, scores, _ = beam_search(setup.model, ids, mask, setup.trie, setup.first_index_token, num_beams)
        return items.cpu().numpy(), scores.cpu().numpy()

    return {
        PREFIX_FUNCTION: lambda prompts, num_beams: generate(prompts, num_beams, prefix_function=True),
        PROCESSOR: lambda prompts, num_beams: generate(prompts, num_beams, prefix_function=False),
        OURS: ours,
    }


def compare_items(schemes: dict[str, Decoder], prompts: Prompts, num_beams: int) -> dict[str, float]:
    """Return the share of lists that are equal in all schemes, and the largest difference of scores at one rank.

    Lists may differ where the scores of two items differ by rounding only.

    Raises:
        RunError: the scores of a scheme differ, so its speed is not comparable.
    """
    results = {name: decode(prompts, num_beams) for name, decode in schemes.items()}
    items, scores = results[OURS]
    same = np.ones(len(prompts), dtype=bool)
    difference = 0.0
    for name, (theirs, their_scores) in results.items():
        same &= (theirs == items).all(axis=1)
        difference = max(difference, float(np.abs(their_scores - scores).max()))
        if not difference <= LARGEST_DIFFERENCE:
            raise RunError(f"{num_beams} beams: the scores of {name!r} differ from ours by {difference} nats")
    return {"same_lists": float(same.mean()), "largest_difference": difference}


def time_schemes(
    schemes: dict[str, Decoder], prompts: Prompts, arguments: argparse.Namespace
) -> dict[int, dict[str, list[float]]]:
    """Return beams -> scheme -> users per second in each repeat.

    The schemes alternate, in reverse order in every second repeat, so that a slow drift of the machine favours none of them.
    """
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
    """Return beams -> scheme -> users per second and the ratio to the prefix function (median, least and most)."""
    summary: dict[int, dict[str, dict[str, float]]] = {}
    for beams, schemes in rates.items():
        summary[beams] = {}
        for name, repeats in schemes.items():
            ratio = np.array(repeats) / np.array(schemes[PREFIX_FUNCTION])
            summary[beams][name] = {
                "users_per_second": float(np.median(repeats)),
                "ratio": float(np.median(ratio)),
                "least_ratio": float(ratio.min()),
                "most_ratio": float(ratio.max()),
            }
    return summary


def time_masks(num_items: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds per mask (mean over levels) and seconds to build, for both kinds of trie.

    It also measures the seconds to read a catalogue file, check it and build the trie, as a model does before its first answer.
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
    rows = np.random.default_rng(arguments.seed).integers(0, num_items, arguments.mask_rows)
    written = torch.from_numpy(tokens[rows]).to(arguments.device)
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
    """Return the seconds to load a catalogue file, check its semantic IDs and build the trie."""
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
    masked[0, 0].item()  # waits for the accelerator's queue
    return (time.perf_counter() - start) / written.shape[1]


def as_markdown(report: dict[str, Any]) -> str:
    """Return the tables of the report as Markdown."""
    setting = report["setting"]
    lines = [
        f"{setting['machine']}, {setting['device']}, {setting['threads']} threads; torch {setting['versions']['torch']}, "
        f"transformers {setting['versions']['transformers']}.",
        "",
        f"Users per second (ratio to the prefix function): {setting['model']}, {setting['items']:,} items, "
        f"{setting['levels']} levels "
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
            "| items | Python function, ms | our processor, ms | dictionaries built, s | our trie built, s | load, s |",
            "|---" * 6 + "|",
        ]
        for row in report["masks"]:
            times = (row["function_ms"], row["trie_ms"], row["function_build_s"], row["trie_build_s"], row["load_s"])
            lines.append(f"| {row['items']:,} | " + " | ".join(f"{value:.3g}" for value in times) + " |")
    return "\n".join(lines) + "\n"


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all schemes and write `decode.json` and `decode.md` into the output folder.

    Raises:
        InputError: numbers below 1, more items than semantic IDs, or more beams than items.
    """
    for name in ("items", "levels", "codebook_size", "users", "history", "batch_size", "mask_rows", "repeats"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be 1 or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    setup = make_setup(arguments)
    for beams in arguments.beams:
        if not 1 <= beams <= len(setup.codes):
            raise InputError(f"--beams has {beams}; with {len(setup.codes)} items it must be between 1 and that number")
    prompts = random_prompts(setup, arguments.users, arguments.history, arguments.seed)
    schemes = decoders(setup)
    checks = {beams: compare_items(schemes, prompts[: arguments.batch_size], beams) for beams in arguments.beams}
    rates = time_schemes(schemes, prompts, arguments)
    report = {
        "setting": {
            "model": Path(arguments.model).name if arguments.model else "GPT-2 shape, 6 layers of width 384, random",
            "items": len(setup.codes),
            "levels": setup.codes.shape[1],
            "codebook_size": setup.codebook_size,
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


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="decoding_speed.py", description=__doc__)
    flags.add_argument("--model", help="name or path of a causal language model (default: GPT-2 shape, random weights)")
    flags.add_argument("--index", help="index.parquet with semantic IDs (default: random codes)")
    flags.add_argument("--items", type=int, default=10_000, help="number of items with random semantic IDs")
    flags.add_argument("--levels", type=int, default=4, help="levels of random semantic IDs")
    flags.add_argument("--codebook-size", type=int, default=256, help="codes per level of random semantic IDs")
    flags.add_argument("--beams", nargs="+", type=int, default=[5, 10, 20, 50], help="beam sizes")
    flags.add_argument("--users", type=int, default=32, help="prompts per timed pass")
    flags.add_argument("--history", type=int, default=20, help="largest number of items in a prompt")
    flags.add_argument("--batch-size", type=int, default=8, help="prompts per batch")
    flags.add_argument("--repeats", type=int, default=3, help="timed passes of each scheme; the median is reported")
    flags.add_argument(
        "--mask-items", nargs="*", type=int, default=[10**4, 10**5, 10**6], help="catalogue sizes for timing masks"
    )
    flags.add_argument("--mask-rows", type=int, default=160, help="beams of all prompts together, for timing masks")
    flags.add_argument("--output", default="reports/decode", help="output folder; decode.json and decode.md are overwritten")
    flags.add_argument("--device", default="cpu", help="torch device")
    flags.add_argument("--threads", type=int, default=0, help="torch threads; 0 keeps the default")
    flags.add_argument("--seed", type=int, default=0, help="random seed")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    disable_progress_bar()
    return flags.run(arguments, lambda: print(as_markdown(decode(arguments))))


if __name__ == "__main__":
    sys.exit(main())
