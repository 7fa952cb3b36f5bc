"""Why an item is recommended: what of the history lies nearest to it, and what the content LM says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, cut
from modeling_cllm4rec.core.prompt_assembly import assemble
from modeling_cllm4rec.hub.model_card import RECORD_FILE
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

Recommender = CLLM4RecForRecommendation | LCRecForRecommendation
SOMEONE = "Someone"
"""Stands where the prompt has a user, for people without an ID token, as in `Prompts.anonymous`."""


def item_vectors(model: Recommender, items: np.ndarray) -> np.ndarray:
    """(items, K) float32 vectors of item indices: what the model itself knows of them.

    CLLM4Rec: rows of the item head (collaborative side). LC-Rec: the sum of the embeddings of an item's index tokens.
    """
    with torch.no_grad():
        if isinstance(model, CLLM4RecForRecommendation):
            table = model.item_collaborative.weight
            return np.asarray(table[torch.from_numpy(items).to(table.device)].float().cpu().numpy())
        config = model.config
        tokens = model.index.codes[items] + config.first_index_token + np.arange(config.num_levels) * config.codebook_size
        words: Any = model.backbone.get_input_embeddings()
        return np.asarray(words(torch.from_numpy(tokens).to(model.device)).float().sum(1).cpu().numpy())


def nearest_in_history(
    model: Recommender, items: np.ndarray, history: np.ndarray, count: int = 2
) -> list[list[tuple[int, float]]]:
    """For each item, the items of the history whose vectors are nearest.

    Args:
        items: item indices; history: item indices, which may be none.
        count: how many for each, fewer where the history is shorter.

    Returns:
        For each item, (item index of the history, cosine) with the highest cosine first; the item itself is left out.
    """
    others = np.unique(history)
    if not len(others) or not len(items):
        return [[] for _ in items]
    cosines = _unit(item_vectors(model, items)) @ _unit(item_vectors(model, others)).T
    cosines[items[:, None] == others[None]] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [
        [(int(others[place]), float(row[place])) for place in places if row[place] > -np.inf]
        for row, places in zip(cosines, order, strict=True)
    ]


class ContentWriter:
    """Sentences of the content LM (section 3.2.2 of the paper) of a CLLM4Rec model, whose weights it shares.

    Args:
        model: the recommender.
        tokenizer: the tokenizer of its folder.
        prompt: template with `{user}` and `{item}`, that of the reviews which the model was trained on.
    """

    def __init__(
        self, model: CLLM4RecForRecommendation, tokenizer: PreTrainedTokenizerBase, prompt: str = Prompts().review
    ) -> None:
        with torch.device("meta"):  # its own weights are never made
            self.writer = CLLM4RecForCausalLM(model.config)
        for name, part in model.named_children():
            setattr(self.writer, name, part)
        self.writer.generation_config = model.generation_config
        self.writer.eval()
        self.tokenizer = tokenizer
        self.known = cut(prompt, tokenizer)
        self.anonymous = cut(prompt, tokenizer, user=SOMEONE)

    @classmethod
    def of(cls, model: Recommender, name: str | Path) -> ContentWriter | None:
        """The writer of a model loaded from `name`; None for LC-Rec, which has no content LM, and where no tokenizer is saved.

        The prompt is that of the training, where the folder keeps its record.
        """
        if not isinstance(model, CLLM4RecForRecommendation):
            return None
        if cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is None:
            return None
        return cls(model, AutoTokenizer.from_pretrained(name), Prompts.from_mapping(_trained_prompts(Path(name))).review)

    def write(self, item: int, user: int | None = None, max_new_tokens: int = 40) -> str:
        """What the model says of an item in the words of a review, greedily; "" if it has nothing to say.

        Args:
            item: item index.
            user: user index, None for a person without an ID token.
            max_new_tokens: the sentence is cut there.
        """
        first_user, first_item = self.writer.config.id_offset, self.writer.config.id_offset + self.writer.config.num_users
        if user is None:
            prompt = assemble(self.anonymous, item=first_item + item)
        else:
            prompt = assemble(self.known, user=first_user + user, item=first_item + item)
        ids = torch.from_numpy(prompt)[None].to(self.writer.device)
        written = self.writer.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, no_repeat_ngram_size=3)
        return str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _trained_prompts(folder: Path) -> dict[str, str] | None:
    """The templates that the training replaced, by the record in its folder."""
    path = folder / RECORD_FILE
    records: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    prompts: dict[str, str] | None = records.get("pretrain", {}).get("arguments", {}).get("prompts")
    return prompts


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
