"""Text generation by the content LM of a CLLM4Rec model: sentences about items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, tokenize_template
from modeling_cllm4rec.core.prompt_assembly import build_input_ids
from modeling_cllm4rec.hub.model_card import read_records

SOMEONE = "Someone"
"""Name in the prompt for a user without an ID token, as in `Prompts.anonymous`."""


def content_writer(model: CLLM4RecForRecommendation, name: str | Path) -> ContentWriter | None:
    """Return the writer of a model that was loaded from `name`, None if no tokenizer is saved with it.

    The prompt is the template of the training, if the folder has its record.
    """
    if cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is None:
        return None
    prompts: Any = read_records(Path(name)).get("pretrain", {}).get("arguments", {}).get("prompts")
    return ContentWriter(model, AutoTokenizer.from_pretrained(name), Prompts.from_mapping(prompts).review)


class ContentWriter:
    """Text generator of the content LM (section 3.2.2 of the paper); shares the weights of the recommender.

    Args:
        model: the recommender.
        tokenizer: the tokenizer of its folder.
        prompt: template with `{user}` and `{item}`: the review template of the training.
    """

    def __init__(
        self, model: CLLM4RecForRecommendation, tokenizer: PreTrainedTokenizerBase, prompt: str = Prompts().review
    ) -> None:
        with torch.device("meta"):  # allocates no weights; those of the recommender are attached below
            self.writer = CLLM4RecForCausalLM(model.config)
        for name, part in model.named_children():
            setattr(self.writer, name, part)
        self.writer.generation_config = model.generation_config
        self.writer.eval()
        self.tokenizer = tokenizer
        self.known = tokenize_template(prompt, tokenizer)
        self.anonymous = tokenize_template(prompt, tokenizer, user=SOMEONE)

    def write(self, item: int, user: int | None = None, max_new_tokens: int = 40) -> str:
        """Generate a review of an item by greedy search; empty if the model ends at once.

        Args:
            item: item index.
            user: user index, None for a user without an ID token.
            max_new_tokens: most tokens of the review; a longer one is cut.
        """
        first_user, first_item = self.writer.config.id_offset, self.writer.config.id_offset + self.writer.config.num_users
        if user is None:
            prompt = build_input_ids(self.anonymous, item=first_item + item)
        else:
            prompt = build_input_ids(self.known, user=first_user + user, item=first_item + item)
        ids = torch.from_numpy(prompt)[None].to(self.writer.execution_device)
        written = self.writer.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, no_repeat_ngram_size=3)
        return str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()
