"""Intentions and preferences written by a causal language model (section III-C of LC-Rec, arXiv 2311.09049)."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.language_model import greedy_generation
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_embeddings import context_length, model_revision
from modeling_cllm4rec.corpora.item_texts import DESCRIPTION, TITLE, clean_text, item_texts
from modeling_cllm4rec.hub.loading import check_on_hub
from modeling_cllm4rec.lcrec.intentions import (
    Intentions,
    extract_intentions,
    parts_of_history,
    reviews_of_items,
    reviews_of_last_items,
    training_histories,
)

logger = logging.getLogger(__name__)

TEXT_WORDS = 60
"""Words of a description or a review that the writer reads."""
REVIEWS = 3
"""Training reviews of an item that the writer reads."""

_ABOUT_ITEM = "Product: {title}\n{details}In one short sentence, a customer who has not found it yet asks a shop for it:"
_ABOUT_USER = (
    "A customer bought, one after another: {titles}.\nIn one short sentence, what this customer likes and looks for:",
    "A customer bought some time ago: {titles}.\nIn one short sentence, the lasting taste of this customer:",
    "A customer bought lately: {titles}.\nIn one short sentence, what this customer looks for at present:",
)
"""Prompts for the general, the long-term and the short-term preference."""
_ABOUT_REVIEW = (
    "Product: {title}\nA buyer: {review}\nIn one short sentence, what this buyer wants, in the buyer's own words:",
    "Product: {title}\nA buyer: {review}\nIn one short sentence, how this product is, without its name:",
)
"""Prompts for the intention of a user by user and by item."""


def write_intentions(
    data: RecommendationData,
    writer: str,
    *,
    cache: str | Path,
    seed: int = 0,
    max_history: int = 20,
    batch_size: int = 8,
    max_new_tokens: int = 48,
    device: str = "cpu",
    progress: bool = True,
) -> Intentions:
    """Write queries of items, and intentions and preferences of users with a causal language model, by greedy decoding.

    The writer reads titles, the first `TEXT_WORDS` words of descriptions and of up to `REVIEWS` training reviews, and
    training histories without their last item, so no held-out pair. It writes one query for each item, and for each user up to
    three preferences and, from the user's review of the last training item, two intentions. Where it writes nothing, the text of
    `extract_intentions` is used; the number of unanswered prompts is logged, and part of `Intentions.source`.

    Args:
        writer: name or path for `AutoModelForCausalLM.from_pretrained`; a chat template is used if there is one.
        cache: a JSON Lines file to which each batch is appended as soon as it is written, so that a killed run continues from
            there. A text is read from it if model, prompt and `max_new_tokens` are the same.
        seed, max_history: as in `extract_intentions`.
        batch_size: prompts at a time.
        max_new_tokens: tokens of the longest text.

    Raises:
        MissingFileError: there is no such writer.
        InputError: items without a title, a prompt beyond the writer's context, a cache that is some other file.

    Example:
        >>> write_intentions(data, "Qwen/Qwen2.5-0.5B-Instruct", cache="intentions.jsonl")  # doctest: +SKIP
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
    by_rules = extract_intentions(data, seed, max_history)
    groups = [[[prompt] for prompt in _item_prompts(data)], _user_prompts(data, max_history), _review_prompts(data)]
    prompts = [prompt for owners in groups for texts in owners for prompt in texts]
    name = Path(writer).resolve().name if Path(writer).is_dir() else writer
    identity = json.dumps([_revision(writer), max_new_tokens])
    keys = [hashlib.sha256(f"{identity}\n{prompt}".encode()).hexdigest() for prompt in prompts]
    written = _read_cache(Path(cache))
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in written}
    if missing:
        logger.info("%s writes %d texts; %d are in %s already", name, len(missing), len(written), cache)
        written |= _write(missing, writer, Path(cache), batch_size, max_new_tokens, device, progress)
    texts = [written[key] for key in keys]
    empty = sum(not text for text in texts)
    if empty:
        logger.warning(
            "%s wrote nothing for %d of %d prompts: texts that are missing come from the rules", name, empty, len(prompts)
        )
    rest = iter(texts)
    own = [[[text for text in itertools.islice(rest, len(asked)) if text] for asked in owners] for owners in groups]
    rules = (by_rules.queries, by_rules.preferences, by_rules.user_queries)
    queries, preferences, user_queries = (
        [mine or others for mine, others in zip(*pair, strict=True)] for pair in zip(own, rules, strict=True)
    )
    return Intentions(
        queries, preferences, user_queries, f"written by {name} ({len(prompts)} prompts; {empty} without an answer)"
    )


def _item_prompts(data: RecommendationData) -> list[str]:
    texts = item_texts(data.items, (TITLE, DESCRIPTION), "title-only")
    reviews = reviews_of_items(data)
    prompts = []
    for title, description, written in zip(texts[TITLE], texts[DESCRIPTION], reviews, strict=True):
        details = f"About it: {_begin(description)}\n" if description else ""
        details += "".join(f"A buyer: {_begin(review)}\n" for review in written[:REVIEWS])
        prompts.append(_ABOUT_ITEM.format(title=title, details=details))
    return prompts


def _user_prompts(data: RecommendationData, max_history: int) -> list[list[str]]:
    """Return the prompts for each user's preferences, none for those with fewer than two training items."""
    titles = item_texts(data.items, (TITLE,))[TITLE]
    return [
        [
            prompt.format(titles="; ".join(titles[item] for item in read))
            for prompt, read in zip(_ABOUT_USER, parts_of_history(history, max_history), strict=False)
        ]
        for history in training_histories(data)
    ]


def _review_prompts(data: RecommendationData) -> list[list[str]]:
    """Return the prompts for each user's intentions, none for those without a review of the last training item."""
    titles = item_texts(data.items, (TITLE,))[TITLE]
    return [
        [prompt.format(title=titles[item], review=_begin(review)) for prompt in _ABOUT_REVIEW] if review else []
        for item, review in reviews_of_last_items(data)
    ]


def _revision(writer: str) -> str:
    check_on_hub(writer, "intention_writer")
    try:
        return model_revision(writer)
    except OSError as error:
        raise _no_writer(writer, error) from error


def _no_writer(writer: str, error: OSError) -> MissingFileError:
    return MissingFileError(
        f"intention_writer: {writer} is no folder with a language model and could not be read from the Hub ({error})"
    )


def _begin(text: str) -> str:
    return " ".join(text.split()[:TEXT_WORDS])


def _write(
    prompts: dict[str, str], writer: str, cache: Path, batch_size: int, max_new_tokens: int, device: str, progress: bool
) -> dict[str, str]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(writer)
        model: Any = AutoModelForCausalLM.from_pretrained(writer, use_safetensors=True)
    except OSError as error:
        raise _no_writer(writer, error) from error
    model.to(device).eval()
    generation = greedy_generation(model.generation_config, tokenizer)
    generation.max_new_tokens = max_new_tokens
    rows = _tokens(list(prompts.values()), tokenizer)
    context = context_length(model.config)
    longest = max(map(len, rows))
    if longest + max_new_tokens > context:
        raise InputError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but {writer} has a context "
            f"of {context}: use a writer with a longer context, or a smaller max_history"
        )
    keys, written = list(prompts), dict[str, str]()
    order = np.argsort([-len(row) for row in rows], kind="stable")  # longest first: a batch that does not fit fails at once
    batches = np.split(order, range(batch_size, len(order), batch_size))
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a", encoding="utf-8") as file:
        for batch in tqdm(batches, desc="writing intentions", disable=not progress):
            texts = _generate(model, tokenizer, [rows[number] for number in batch], generation)
            for number, text in zip(batch, texts, strict=True):
                written[keys[number]] = text
                file.write(json.dumps({"key": keys[number], "text": text}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return written


def _tokens(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of prompts; literal special tokens in them are removed."""
    for special in tokenizer.all_special_tokens:
        prompts = [prompt.replace(special, " ") for prompt in prompts]
    if tokenizer.chat_template is None:
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [begin + row for row in tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


@torch.no_grad()
def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], generation: GenerationConfig) -> list[str]:
    """Return the first line that the model writes after each prompt."""
    longest = max(map(len, rows))
    padding = 0 if generation.pad_token_id is None else generation.pad_token_id
    ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=generation)[:, longest:]
    texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    return [clean_text(text.splitlines()[0]) if text else "" for text in texts]


def _read_cache(path: Path) -> dict[str, str]:
    """Return the texts of earlier runs, and remove a last line that was cut off from the file."""
    if not path.exists():
        return {}
    content, first = path.read_bytes(), b'{"key": "'
    if content[: len(first)] != first[: len(content)]:
        raise InputError(f"{path} is no file of written intentions; name another cache")
    whole = content[: content.rfind(b"\n") + 1]
    try:
        entries = [json.loads(line) for line in whole.splitlines()]
        written = {entry["key"]: entry["text"] for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): delete it, or name another cache") from error
    if len(whole) < len(content):
        logger.warning("the last line of %s was cut off; its text is written again", path)
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return written
