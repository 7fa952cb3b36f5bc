"""Page of LC-Rec's alignment: what a model writes about semantic IDs, and where their tokens lie among words (figure 4).

    python recipes/experiments/alignment_page.py --model runs/lcrec-mine --data data/mine --other runs/seqrec --output page.html

Case studies: the model is asked for the title of an item, given the first token of its semantic ID, the first two, and so on
to all of them. The model needs the task `index2item`. Next to what it writes is how much of the title it found: the F1 of
words, and, as the level of chance, that of the same answers against the titles of other items. Picture: the input embeddings of
words of the item texts and of index tokens on their first two principal components, next to those of another run (`--other`),
such as one that was aligned by `seqrec` alone. Its number is the share of words among the nearest tokens of the index tokens.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from modeling_cllm4rec.commands.command_line import CommandParser
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.language_model import end_tokens
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.corpora.item_texts import TITLE, clean_text, text_column
from modeling_cllm4rec.lcrec.alignment_tasks import INDEX
from modeling_cllm4rec.lcrec.alignment_templates import load_templates, tokenize_template
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForCausalLM

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
NEAREST = 10
"""Neighbours of an index token that are looked at."""
PAGE_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8886; overflow-wrap: anywhere; vertical-align: top; }
svg { max-width: 100%; height: auto; background: #fff; }
"""


class Case(NamedTuple):
    """An item, and the title that the model wrote after 1, 2, ..., H tokens of its semantic ID."""

    item: int
    title: str
    written: list[str]


def word_f1(written: str, title: str) -> float:
    """Return the F1 of the words of a text against those of a title, in lower case and counted as often as they occur.

    Example:
        >>> word_f1("red red lamp", "Red lamp, large")
        0.6666666666666666
    """
    left, right = (Counter(re.findall(r"\w+", text.lower())) for text in (written, title))
    shared = (left & right).total()
    return 2 * shared / (left.total() + right.total()) if shared else 0.0


def title_prompts(model: LCRecForCausalLM, items: Integers, template: str) -> list[list[list[int]]]:
    """Return the token ids of the question for each item's title, with 1, 2, ..., H tokens of its semantic ID.

    Args:
        template: a template of the kind `index2item.title`, with `{index}`.

    Returns:
        Item -> level -> token ids.
    """
    segments = tokenize_template(template + load_templates().answer, model.tokenizer)
    prompts = []
    for tokens in model.tokens_of(items).tolist():
        prompts.append(
            [
                [token for part in segments for token in (tokens[: level + 1] if part == INDEX else part)]
                for level in range(len(tokens))
            ]
        )
    return prompts


@torch.inference_mode()
def write_titles(model: LCRecForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Return the most probable continuation of each prompt, token by token, up to the end token."""
    end = end_tokens(model.tokenizer)
    stop = {"eos_token_id": end[0], "pad_token_id": end[0]} if end else {}
    writer: Any = model
    written = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        made = writer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, **stop
        )
        answer = [token for token in made[0, len(prompt) :].tolist() if token not in end]
        written.append(str(model.tokenizer.decode(answer)).strip())
    return written


def title_cases(
    model: LCRecForCausalLM, titles: Sequence[str], items: Integers, max_new_tokens: int = 24, template: str | None = None
) -> list[Case]:
    """Return what the model writes about items.

    Args:
        titles: of all items.
        items: (n,) item indices, each with a title.
        max_new_tokens: most tokens of an answer.
        template: question (default: the first packaged one).
    """
    prompts = title_prompts(model, items, template or load_templates().groups["index2item"]["title"][0])
    return [
        Case(item, titles[item], write_titles(model, levels, max_new_tokens))
        for item, levels in zip(items.tolist(), prompts, strict=True)
    ]


def found_words(cases: Sequence[Case]) -> tuple[Floats, Floats]:
    """Return the mean F1 of the answers by number of levels read, (H,), and that against the titles of the next cases, (H,)."""
    own = np.array([[word_f1(text, case.title) for text in case.written] for case in cases])
    others = [case.title for case in (*cases[1:], *cases[:1])]
    chance = np.array([[word_f1(text, title) for text in case.written] for case, title in zip(cases, others, strict=True)])
    return own.mean(axis=0), chance.mean(axis=0)


def token_rows(model: LCRecForCausalLM, texts: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the input embeddings of the words of texts, (W, d), and of the index tokens that items have, (T, d)."""
    words = sorted({token for text in texts for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]})
    index = np.unique(model.tokens_of(np.ones(model.config.num_items, dtype=bool)))
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.detach().float().cpu().numpy().astype(np.float64)
    return rows[np.array(words)], rows[index]


def principal_components(rows: Floats) -> Floats:
    """Return (n, 2): the coordinates of rows on their first two principal components."""
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T


def share_of_words(words: Floats, index: Floats, nearest: int = NEAREST) -> float:
    """Return the mean share of words among the nearest tokens (cosine) of the index tokens.

    Tokens that lie apart have 0, and two sets of one distribution W / (W + T - 1).
    """
    every = np.concatenate([words, index])
    every = every / np.linalg.norm(every, axis=1, keepdims=True).clip(1e-12)
    cosines = every[len(words) :] @ every.T
    cosines[np.arange(len(index)), len(words) + np.arange(len(index))] = -np.inf
    count = min(nearest, len(every) - 1)
    return float((np.argpartition(-cosines, count - 1, axis=1)[:, :count] < len(words)).mean())


def picture(pairs: Sequence[tuple[str, Floats, Floats]]) -> str:
    """Return an SVG with a panel for each run (name, words, index tokens)."""
    require("matplotlib", "benchmark", "the picture of the embeddings")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "alignment", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.6 * len(pairs), 4.2), layout="constrained")
        for axis, (name, words, index) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            points = principal_components(np.concatenate([words, index]))
            axis.plot(*points[: len(words)].T, ".", ms=3, alpha=0.5, color="tab:gray", label="words of item texts")
            axis.plot(*points[len(words) :].T, ".", ms=4, alpha=0.7, color="tab:blue", label="index tokens")
            axis.set_title(f"{name}: words are {share_of_words(words, index):.0%} of the neighbours", fontsize="medium")
            axis.legend(fontsize=7)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def render(name: str, cases: Sequence[Case], svg: str, shown: int) -> str:
    """Return the page as HTML; every text of the data is escaped, and nothing is loaded from elsewhere."""
    levels = range(1, len(cases[0].written) + 1)
    own, chance = found_words(cases)
    heads = "".join(f"<th>{level} token{'s' * (level > 1)}</th>" for level in levels)
    numbers = "".join(
        f"<tr><td>{label}</td>{''.join(f'<td>{value:.3f}</td>' for value in row)}</tr>"
        for label, row in (("title of the item", own), ("title of another item", chance))
    )
    studies = "".join(
        f"<tr><td>{escape(case.title)}</td>{''.join(f'<td>{escape(text)}</td>' for text in case.written)}</tr>"
        for case in cases[:shown]
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Alignment of {escape(name)}</title><style>{PAGE_STYLE}</style><h1>Alignment of {escape(name)}</h1>"
        f"<h2>Words of the title that the model writes (mean F1 of {len(cases)} items)</h2>"
        f"<table><tr><th>compared with</th>{heads}</tr>{numbers}</table>"
        f"<h2>Titles from semantic IDs</h2><table><tr><th>item</th>{heads}</tr>{studies}</table>"
        f"<h2>Input embeddings</h2><p>First two principal components of words and index tokens; neighbours are the {NEAREST} "
        f"nearest tokens by cosine.</p>{svg}</html>\n"
    )


def load_model(folder: str, data: RecommendationData) -> LCRecForCausalLM:
    """Load a model of the catalogue of `data`.

    Raises:
        MissingFileError: there is no such folder.
        InputError: it holds another kind of model, or one of other items.
    """
    if not (Path(folder) / "config.json").is_file():
        raise MissingFileError(f"model: there is no model in {folder}; give a folder that `cllm4rec align` wrote")
    model = LCRecForCausalLM.from_pretrained(folder).eval()
    check_same_ids(model, data, folder)
    return model


def make_page(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the page.

    Returns:
        Its numbers: F1 by levels read (`own`, `chance`) and run -> share of words (`words`).
    """
    data = RecommendationData.load(arguments.data)
    if TITLE not in data.items.column_names:
        raise InputError("data: the items have no titles, which the page compares with; add them with `cllm4rec prepare`")
    if arguments.cases < 2:
        raise InputError(f"cases is {arguments.cases}; it must be 2 or more")
    titles = [clean_text(title) for title in text_column(data.items, TITLE)]
    model = load_model(arguments.model, data)
    titled = np.flatnonzero([bool(title) for title in titles])
    if len(titled) < 2:
        raise InputError(f"data: {len(titled)} items have a title; at least 2 are needed")
    items = np.random.default_rng(arguments.seed).permutation(titled)[: arguments.cases]
    cases = title_cases(model, titles, items, arguments.max_new_tokens)
    runs = {arguments.model: model}
    if arguments.other:
        runs[arguments.other] = load_model(arguments.other, data)
    rows = [(name, *token_rows(one, titles)) for name, one in runs.items()]
    page = render(arguments.model, cases, picture(rows), arguments.shown)
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    own, chance = found_words(cases)
    return {
        "own": own.tolist(),
        "chance": chance.tolist(),
        "words": {name: share_of_words(words, index) for name, words, index in rows},
        "one distribution": {name: len(words) / (len(words) + len(index) - 1) for name, words, index in rows},
    }


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="alignment_page.py", description=__doc__)
    flags.add_argument("--model", required=True, help="folder of an aligned LC-Rec with the task index2item")
    flags.add_argument("--data", required=True, help="data folder written by `cllm4rec prepare`")
    flags.add_argument("--other", help="another aligned LC-Rec of the same items, for the picture")
    flags.add_argument("--output", required=True, help="HTML file to write; an existing one is replaced")
    flags.add_argument("--cases", type=int, default=100, help="items drawn for the F1 of words")
    flags.add_argument("--shown", type=int, default=12, help="of them shown as case studies")
    flags.add_argument("--max-new-tokens", type=int, default=24, help="most tokens of an answer")
    flags.add_argument("--seed", type=int, default=0, help="of the draw of items")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def work() -> None:
        numbers = make_page(arguments)
        for label in ("own", "chance"):
            print(f"F1, {label}: {' '.join(f'{value:.3f}' for value in numbers[label])}")
        for name, share in numbers["words"].items():
            mixed = numbers["one distribution"][name]
            print(f"words among the neighbours of index tokens, {name}: {share:.3f} (mixed: {mixed:.3f})")
        print(arguments.output)

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
