"""CLLM4Rec (arXiv 2311.01343): a causal language model with tokens for users and items.

This file and its flat siblings are self-contained because they are copied into every saved folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, ModelOutput

from ..core.catalogue import Catalogue, KnownUsers
from ..core.errors import InputError
from ..core.language_model import check_fields, evaluating, is_left_padded, pretrained_backbone, published_config, real_positions
from ..core.losses import ItemLoss, multinomial_nll
from ..core.prompt_assembly import build_input_ids
from ..core.recommender import RecommenderModel
from ..core.top_items import top_candidates
from .catalogue_changes import ITEM_WORDS, Start, add_items, add_user_rows, add_users, take_item_rows, take_users
from .configuration_cllm4rec import CLLM4RecConfig

Side = Literal["collaborative", "content"]
SIDES: tuple[Side, Side] = ("collaborative", "content")


@dataclass
class RecommendationOutput(ModelOutput):
    """Outputs of `CLLM4RecForRecommendation`.

    Attributes:
        loss: () mean over the batch of the multinomial negative log-likelihood, when `labels` were given.
        logits: (batch, J) scores of all items.
        last_hidden_state: (batch, K) state of each prompt's last real token.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class CLLM4RecPreTrainedModel(RecommenderModel):
    """The backbone and the four ID tables, with catalogue, users and card."""

    config_class = CLLM4RecConfig
    system = "cllm4rec"
    reads_users = True

    config: CLLM4RecConfig

    def __init__(self, config: CLLM4RecConfig) -> None:
        super().__init__(config)
        # A copy: a shared config would lose its attention implementation, and attention its causality.
        text_config = copy.deepcopy(config.text_config)
        self.backbone = AutoModelForCausalLM.from_config(text_config, dtype=torch.get_default_dtype())
        width = self.backbone.get_input_embeddings().embedding_dim
        if width != config.hidden_size:
            raise InputError(
                f"the backbone's word embeddings have width {width} and its states {config.hidden_size}: an ID row is "
                "both input and output and needs one width; choose another backbone"
            )
        self.user_collaborative = nn.Embedding(config.num_users, width)
        self.item_collaborative = nn.Embedding(config.num_items, width)
        self.user_content = nn.Embedding(config.num_users, width)
        self.item_content = nn.Embedding(config.num_items, width)
        if not self.can_generate():  # kept for the folder, which the content LM is loaded from too
            self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if any(module is table for side in SIDES for table in self.tables(side)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)  # type: ignore[arg-type]

    def tables(self, side: Side) -> tuple[nn.Embedding, nn.Embedding]:
        """User table (I, K) and item table (J, K) of one side (section 3.1 of the paper)."""
        if side == "collaborative":
            return self.user_collaborative, self.item_collaborative
        if side == "content":
            return self.user_content, self.item_content
        raise InputError(f"side is {side!r}; allowed are 'collaborative' and 'content'")

    @property
    def id_parameters(self) -> list[torch.Tensor]:
        """The four matrices of ID rows."""
        return [weight for group in self.id_parameter_groups for weight in group]

    @property
    def id_parameter_groups(self) -> list[list[torch.Tensor]]:
        """The matrices of each side: the L and the C step of pretraining change one side each."""
        return [[table.weight for table in self.tables(side)] for side in SIDES]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not possible: ID tokens follow the words by arithmetic, more words would shift them all."""
        raise InputError(
            f"resize_token_embeddings: ID tokens start at id_offset={self.config.id_offset}, new words would take their "
            "places; add words to the backbone first, then call from_backbone"
        )

    def embed_tokens(self, input_ids: torch.Tensor, side: Side) -> torch.Tensor:
        """Rows of the word table and of one side's ID tables.

        Args:
            input_ids: (B, T) token ids in [0, N + I + J).

        Returns:
            (B, T, K).
        """
        users, items = self.tables(side)
        first_user = self.config.id_offset
        first_item = first_user + self.config.num_users
        is_user = (input_ids >= first_user) & (input_ids < first_item)
        is_item = input_ids >= first_item
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_user | is_item, 0))
        if self.config.num_users:
            rows = users((input_ids - first_user).masked_fill(~is_user, 0))
            embeds = torch.where(is_user[..., None], rows.to(embeds.dtype), embeds)
        if self.config.num_items:
            rows = items((input_ids - first_item).masked_fill(~is_item, 0))
            embeds = torch.where(is_item[..., None], rows.to(embeds.dtype), embeds)
        return embeds

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, side: Side, **kwargs: Any
    ) -> torch.Tensor:
        """(B, T, K) last states of the causal backbone, ID tokens read from one side's tables."""
        if is_left_padded(attention_mask):
            kwargs.setdefault("position_ids", real_positions(attention_mask))  # type: ignore[arg-type]
        outputs = self.backbone.base_model(
            inputs_embeds=self.embed_tokens(input_ids, side),
            attention_mask=attention_mask,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        return outputs.last_hidden_state

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | Path,
        *,
        num_users: int | None = None,
        num_items: int | None = None,
        users: Sequence[Any] | np.ndarray | pa.Array | KnownUsers | None = None,
        catalogue: Sequence[Any] | np.ndarray | pa.Array | pa.Table | Catalogue | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **config_arguments: Any,
    ) -> Any:
        """Build a new model around a pretrained causal language model.

        Args:
            name_or_path: folder or name on the Hub, as for `AutoModelForCausalLM.from_pretrained`.
            num_users, users: number of users, or their external ids (a `KnownUsers` keeps histories too).
            num_items, catalogue: number of items, or their external ids (a `Catalogue` keeps titles too).
            dtype: type of the weights; training wants float32 (with bf16 autocast).
            seed: start of the random numbers of the ID rows.
            config_arguments: further fields of `CLLM4RecConfig`.

        Raises:
            InputError: a count and ids, or neither; ids that mix types or occur twice; a field that the configuration does
                not have; a backbone whose shape or output layer cannot be used, or an adapter.

        Example:
            >>> model = CLLM4RecForRecommendation.from_backbone(
            ...     "gpt2", users=["ann"], catalogue=["B1", "B2"])  # doctest: +SKIP
        """
        check_fields(CLLM4RecConfig, config_arguments)
        if users is not None and not isinstance(users, KnownUsers):
            users = KnownUsers(users)
        if catalogue is not None and not isinstance(catalogue, Catalogue):
            catalogue = Catalogue(catalogue)
        backbone, tokenizer = pretrained_backbone(name_or_path, dtype)
        text_config = published_config(backbone)
        text_tokens = 0 if tokenizer is None else len(tokenizer)
        config_arguments.setdefault("id_offset", max(text_tokens, text_config.get_text_config().vocab_size))
        config = CLLM4RecConfig(
            text_config=text_config,
            num_users=_count("num_users", num_users, "users", users),
            num_items=_count("num_items", num_items, "catalogue", catalogue),
            catalogue_fingerprint=catalogue.ids.fingerprint if catalogue is not None else None,
            dtype=dtype,
            **config_arguments,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls._around(backbone, tokenizer, config, dtype)
        model.catalogue, model.users = catalogue, users
        _check_backbone(model)
        return model

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        """Return (items, K) float32 rows of the item head (collaborative side)."""
        table = self.item_collaborative.weight.detach()
        return np.asarray(table[torch.from_numpy(items).to(table.device)].float().cpu().numpy())

    def add_items(
        self,
        items: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]],
        *,
        start: Start = "regression",
        prediction_scale: float = 0.5,
        columns: Sequence[str] = ITEM_WORDS,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Add new items to the catalogue by their texts alone; see `catalogue_changes.add_items`.

        Example:
            >>> model.add_items([{"item_id": "B9", "title": "Rose hand cream, 50 ml"}])  # doctest: +SKIP
        """
        add_items(self, items, start=start, prediction_scale=prediction_scale, columns=columns, tokenizer=tokenizer)

    def add_users(self, histories: Mapping[Any, Iterable[Any]]) -> None:
        """Give new users an ID token by their histories; see `catalogue_changes.add_users`.

        Example:
            >>> model.add_users({"zoe": ["B1", "B7"]})  # doctest: +SKIP
        """
        add_users(self, histories)

    def add_user_rows(self, count: int) -> None:
        """Append mean rows for new users; `take_users` then names them."""
        add_user_rows(self, count)

    def take_users(self, rows: np.ndarray, users: KnownUsers) -> None:
        """Keep these users, in this order, as `users`: (kept,) user indices, each once."""
        take_users(self, rows, users)

    def _take_item_rows(self, rows: np.ndarray) -> None:
        take_item_rows(self, rows)

    def prompt_state(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """(B, K) state of the last real token of each prompt, whichever side is padded."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.hidden_states(input_ids, attention_mask, "collaborative", **kwargs)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * attention_mask).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]

    def item_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, J) the item head, tied to the collaborative item rows."""
        return F.linear(hidden, self.item_collaborative.weight.to(hidden.dtype))

    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Token ids of the recommendation prompt for each history (item indices, oldest first)."""
        config = self.config
        if config.recommendation_prompts is None:
            raise InputError("this model has no recommendation prompt yet: finetune it, or set config.recommendation_prompts")
        limit = config.prompt_limit
        first_item = config.id_offset + config.num_users
        prompts = []
        for number, history in enumerate(histories):
            items = np.asarray(history, dtype=np.int64) + first_item
            user = -1 if user_indices is None else int(user_indices[number])
            pieces = config.recommendation_prompts["known" if user >= 0 else "anonymous"]
            prompts.append(build_input_ids(pieces, user=config.id_offset + user, items=items, max_length=limit))
        return prompts

    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 scores of prompts as token ids, on the model's device, in evaluation mode."""
        with evaluating(self):
            return self.item_logits(self.prompt_state(*self.pad_prompts(prompts))).float()

    def best_items(
        self,
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        k: int,
        candidates: np.ndarray | None,
        **search: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, k) best item indices of prompts and their scores, from one forward pass."""
        self.check_search(k, **search)
        return top_candidates(self.score_prompts(prompts), seen, k, candidates)


class CLLM4RecModel(CLLM4RecPreTrainedModel):
    """The bare model: token ids, ID tokens included, to states."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        side: Side = "collaborative",
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Last states (B, T, K) of (B, T) token ids, read from one side's tables."""
        return BaseModelOutput(last_hidden_state=self.hidden_states(input_ids, attention_mask, side, **kwargs))


class CLLM4RecForCausalLM(CLLM4RecPreTrainedModel, GenerationMixin):
    """The content LM (section 3.2.2): prompts with user and item tokens in, words out."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-word logits (B, T, N) over words only: an ID token is never written.

        Args:
            input_ids: (B, T) token ids, ID tokens included; or `inputs_embeds` (B, T, K).
            attention_mask: (B, T), with a cache (B, cached + T); padding on either side.
            position_ids: (B, T); None counts the real tokens.
            token_type_ids: (B, T), for backbones whose tokenizer gives them (BERT).
            labels: (B, T) words to be predicted at their own place (shifted inside), -100 for places that do not count.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids, "content")  # type: ignore[arg-type]
        if position_ids is None and is_left_padded(attention_mask):
            position_ids = real_positions(attention_mask)[:, -inputs_embeds.shape[1] :]  # type: ignore[arg-type]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        kwargs.pop("return_dict", None)
        outputs = self.backbone(inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True, **kwargs)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=outputs.logits, past_key_values=outputs.past_key_values)

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        """As `GenerationMixin.generate`, greedy by default; prompts (B, T) may hold ID tokens, what follows are words.

        The prompt goes in as embeddings, so that no logits processor meets a token id beyond the words.

        Returns:
            (B * num_return_sequences, T + written) token ids, the prompts first; with `return_dict_in_generate=True` they
            are the field `sequences`.

        Raises:
            InputError: prompt and new words do not fit into the context.
        """
        room = self.config.context_length - input_ids.shape[1]
        if room < (kwargs.get("max_new_tokens") or 1):
            raise InputError(
                f"the prompt takes {input_ids.shape[1]} of the {self.config.context_length} tokens of the context, "
                f"max_new_tokens is {kwargs.get('max_new_tokens')}: they do not fit together; shorten one of them"
            )
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        embeds = self.embed_tokens(input_ids, "content")
        written: Any = super().generate(inputs_embeds=embeds, **kwargs)  # type: ignore[misc]
        words = written if isinstance(written, torch.Tensor) else written.sequences
        whole = torch.cat([input_ids.repeat_interleave(len(words) // len(input_ids), dim=0), words], dim=1)
        if isinstance(written, torch.Tensor):
            return whole
        written.sequences = whole
        return written


class CLLM4RecForRecommendation(CLLM4RecPreTrainedModel):
    """The recommender (section 3.4): a prompt with a history in, scores of all items out, in one forward pass."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        item_loss: ItemLoss = "exact",
        **kwargs: Any,
    ) -> RecommendationOutput:
        """Scores of the whole catalogue.

        Args:
            input_ids: (B, T) token ids of prompts, padded on either side; attention_mask: (B, T).
            labels: (B, H) item indices that the multinomial likelihood counts, -100 where a row has fewer.

        Returns:
            `RecommendationOutput` with logits (B, J).
        """
        hidden = self.prompt_state(input_ids, attention_mask, **kwargs)
        loss = None
        if labels is not None:
            loss = multinomial_nll(hidden, self.item_collaborative.weight, labels, item_loss=item_loss).mean()
        return RecommendationOutput(loss=loss, logits=self.item_logits(hidden), last_hidden_state=hidden)


def _count(count_name: str, count: int | None, ids_name: str, ids: Catalogue | KnownUsers | None) -> int:
    if (count is None) == (ids is None):
        raise InputError(f"from_backbone: give exactly one of {count_name}= and {ids_name}=")
    number = count if ids is None else len(ids)
    if number is None or number < 1:
        raise InputError(f"from_backbone: {count_name} is {number}; it must be 1 or more")
    return number


@torch.no_grad()
def _check_backbone(model: CLLM4RecPreTrainedModel) -> None:
    """Refuse a backbone whose own logits are not its output layer applied to its decoder's states."""
    model.eval()
    ids = torch.arange(4)[None] % model.config.vocab_size
    mask = torch.ones_like(ids)
    ours = model.word_head(model.hidden_states(ids, mask, "content"))
    theirs = model.backbone(input_ids=ids, attention_mask=mask).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{type(model.backbone).__name__} computes its logits in a way that this model does not reproduce "
            "(difference above 1e-3 on a probe); choose another backbone"
        )


__all__ = [
    "CLLM4RecForCausalLM",
    "CLLM4RecForRecommendation",
    "CLLM4RecModel",
    "CLLM4RecPreTrainedModel",
    "RecommendationOutput",
]
