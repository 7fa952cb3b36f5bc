"""CLLM4Rec (arXiv 2311.01343): a causal language model with tokens for users and items.

This file and its flat siblings are self-contained because they are copied into every saved folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput
from transformers.utils import can_return_tuple

from ..core.catalogue import Catalogue, KnownUsers
from ..core.errors import InputError
from ..core.language_model import (
    CACHE,
    check_fields,
    decoder_arguments,
    evaluating,
    new_backbone,
    next_word_loss,
    pretrained_backbone,
    published_config,
)
from ..core.losses import ItemLoss, multinomial_nll
from ..core.prompt_assembly import build_batch_ids
from ..core.ragged import RaggedRows
from ..core.recommender import RecommenderModel
from ..core.top_items import items_per_piece, top_candidates
from .catalogue_changes import ITEM_WORDS, Start, add_items, add_user_rows, add_users, take_item_rows, take_users
from .configuration_cllm4rec import CLLM4RecConfig

Side = Literal["collaborative", "content"]
SIDES: tuple[Side, Side] = ("collaborative", "content")

SHARED_ROWS = 16_384
"""Item rows that a process looks up at once to score the catalogue, where the processes of a training share the table."""


@dataclass
class RecommendationOutput(ModelOutput):
    """Outputs of `CLLM4RecForRecommendation`.

    Attributes:
        loss: () mean over the batch of the multinomial negative log-likelihood, when `labels` were given.
        logits: (batch, J) scores of all items.
        last_hidden_state: (batch, K) state of each prompt's last real token.
        hidden_states: states (batch, T, K) of the input and of every layer, with `output_hidden_states=True`.
        attentions: attentions (batch, heads, T, T) of every layer, with `output_attentions=True`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class CLLM4RecPreTrainedModel(RecommenderModel):
    """The backbone and the four ID tables, with catalogue, users and card."""

    config_class = CLLM4RecConfig
    system = "cllm4rec"
    reads_users = True

    config: CLLM4RecConfig

    def __init__(self, config: CLLM4RecConfig) -> None:
        super().__init__(config)
        self.backbone = new_backbone(config.text_config)
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
        # With a device_map, words, users and items may be on different devices.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_user | is_item, 0))
        if self.config.num_users:
            rows = users((input_ids - first_user).masked_fill(~is_user, 0))
            embeds = torch.where(is_user[..., None].to(embeds.device), rows.to(embeds.device, embeds.dtype), embeds)
        if self.config.num_items:
            rows = items((input_ids - first_item).masked_fill(~is_item, 0))
            embeds = torch.where(is_item[..., None].to(embeds.device), rows.to(embeds.device, embeds.dtype), embeds)
        return embeds

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, side: Side, **kwargs: Any
    ) -> torch.Tensor:
        """(B, T, K) last states of the causal backbone, ID tokens read from one side's tables."""
        states: torch.Tensor = self.decode(input_ids, attention_mask, side, **kwargs).last_hidden_state
        return states

    def decode(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        side: Side,
        *,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the causal backbone without its output layer.

        Args:
            input_ids: (B, T) token ids, ID tokens included; or `inputs_embeds` (B, T, K).
            attention_mask: (B, T), with a cache (B, cached + T); padding on either side.
            side: the tables that ID tokens are read from.
            kwargs: further arguments of the backbone's decoder, such as `output_hidden_states`, `use_cache` (off by default).

        Returns:
            The decoder's output, `last_hidden_state` (B, T, K) first.
        """
        embeds = self._embeds(input_ids, inputs_embeds, side)
        decoder = self.backbone.base_model
        given = {"use_cache": False, **decoder_arguments(decoder, attention_mask, embeds.shape[1])}
        given |= {name: value for name, value in kwargs.items() if value is not None}
        return decoder(**{**given, "inputs_embeds": embeds, "attention_mask": attention_mask, "return_dict": True})

    def _embeds(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, side: Side) -> torch.Tensor:
        """Return the embeddings (B, T, K) of token ids, or those that were given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        return self.embed_tokens(input_ids, side) if inputs_embeds is None else inputs_embeds  # type: ignore[arg-type]

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
        rows = self.item_collaborative(torch.from_numpy(items).to(self.execution_device))
        return np.asarray(rows.detach().float().cpu().numpy())

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
        return last_states(self.hidden_states(input_ids, attention_mask, "collaborative", **kwargs), attention_mask)

    def item_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, J) the item head, tied to the collaborative item rows."""
        if not isinstance(self.item_collaborative.weight, DTensor):
            return F.linear(hidden, self.item_rows.to(hidden.device, hidden.dtype))
        # Processes share the rows, and each piece is an exchange: all of them ask for the same pieces, whatever their batches.
        logits = hidden.new_empty(len(hidden), self.config.num_items)
        for start in range(0, self.config.num_items, SHARED_ROWS):
            stop = min(start + SHARED_ROWS, self.config.num_items)
            logits[:, start:stop] = F.linear(hidden, self._item_rows(start, stop).to(hidden.dtype))
        return logits

    @property
    def item_rows(self) -> torch.Tensor:
        """(J, K) the collaborative item rows; offloaded ones are brought to the device that computes."""
        return self._item_rows(0, self.config.num_items)

    def _item_rows(self, start: int, stop: int) -> torch.Tensor:
        table = self.item_collaborative
        if table.weight.device.type != "meta" and not isinstance(table.weight, DTensor):
            return table.weight if (start, stop) == (0, len(table.weight)) else table.weight[start:stop]
        # Weights that accelerate keeps on disk or on the CPU appear only while their module is called. Rows of a table that
        # processes share in training are looked up by its module as well.
        rows: torch.Tensor = table(torch.arange(start, stop, device=self.execution_device))
        return rows

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that a tokenizer has the ID tokens of this model."""
        for name in ("id_offset", "num_users", "num_items"):
            own, given = getattr(self.config, name), getattr(tokenizer, name, None)
            if own != given:
                raise InputError(
                    f"{name} of the tokenizer is {given}, that of the model {own}: it is not the tokenizer of this model; copy "
                    "the model's folder again, or make the tokenizer by CLLM4RecTokenizer.from_backbone"
                )

    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> RaggedRows:
        """Token ids of the recommendation prompt for each history (item indices, oldest first)."""
        config = self.config
        if config.recommendation_prompts is None:
            raise InputError("this model has no recommendation prompt yet: finetune it, or set config.recommendation_prompts")
        items = RaggedRows.of(histories)
        users = np.full(len(items), -1) if user_indices is None else np.asarray(user_indices, dtype=np.int64)
        return build_batch_ids(
            [config.recommendation_prompts[name] for name in ("known", "anonymous")],
            (users < 0).astype(np.int64),
            users=config.id_offset + users,
            items=RaggedRows(items.values + config.id_offset + config.num_users, items.indptr),
            max_length=config.prompt_limit,
        )

    @property
    def scores_by_vectors(self) -> bool:
        """Return True: the score of item j is h . z_j (section 3.4), with the state h of the last token and the row z_j."""
        return True

    def query_vectors(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the (B, K) float32 states of the last tokens of prompts, in evaluation mode."""
        with evaluating(self):
            return self.prompt_state(*self.pad_prompts(prompts)).float()

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
        histories: Sequence[np.ndarray] | None = None,
        **search: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, k) best item indices of prompts and their scores, from one forward pass.

        The item table is multiplied in pieces, so memory does not grow with the catalogue, unless linear parts are added.
        """
        self.check_search(k, **search)
        if self.linear_parts is not None and histories is not None:
            return top_candidates(self.with_linear_parts(self.score_prompts(prompts), histories), seen, k, candidates)
        with evaluating(self):
            states = self.prompt_state(*self.pad_prompts(prompts))
            return top_candidates(self._score_pieces(states), seen, k, candidates)

    def _score_pieces(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield (B, items) float32 scores of (B, K) states, some items at a time."""
        for start in range(0, self.config.num_items, size := items_per_piece(len(states))):
            rows = self._item_rows(start, min(start + size, self.config.num_items))
            yield F.linear(states, rows.to(states.device, states.dtype)).float()


class CLLM4RecModel(CLLM4RecPreTrainedModel):
    """The bare model: token ids, ID tokens included, to states."""

    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        side: Side = "collaborative",
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Last states (B, T, K) of (B, T) token ids, read from one side's tables; arguments as those of `decode`."""
        outputs: BaseModelOutputWithPast = self.decode(input_ids, attention_mask, side, inputs_embeds=inputs_embeds, **kwargs)
        return outputs


class CLLM4RecForCausalLM(CLLM4RecPreTrainedModel, GenerationMixin):
    """The content LM (section 3.2.2): prompts with user and item tokens in, words out."""

    accepts_loss_kwargs = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-word logits (B, T, N) over words only: an ID token is never written.

        Args:
            input_ids: (B, T) token ids, ID tokens included; or `inputs_embeds` (B, T, K).
            attention_mask: (B, T), with a cache (B, cached + T); padding on either side.
            position_ids: (B, T); None counts the real tokens.
            token_type_ids: (B, T), for backbones whose tokenizer gives them (BERT).
            labels: (B, T) words to be predicted at their own place (shifted inside). -100 and ID tokens, which are never written,
                do not count.
            shift_labels, num_items_in_batch: see `language_model.next_word_loss`.
        """
        embeds = self._embeds(input_ids, inputs_embeds, "content")
        given = decoder_arguments(self.backbone.base_model, attention_mask, embeds.shape[1])
        own = {"position_ids": position_ids, "token_type_ids": token_type_ids, **kwargs}
        given |= {name: value for name, value in own.items() if value is not None}
        outputs = self.backbone(**{**given, "inputs_embeds": embeds, "attention_mask": attention_mask, "return_dict": True})
        return CausalLMOutputWithPast(
            loss=next_word_loss(outputs.logits, labels, shift_labels, num_items_in_batch),
            logits=outputs.logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Generate words as `GenerationMixin.generate` does, greedily by default; prompts (B, T) may hold ID tokens.

        A prompt with ID tokens goes in as embeddings, so that no logits processor meets a token id beyond the words.

        Args:
            inputs: (B, T) token ids, also as `input_ids`; or `inputs_embeds` (B, T, K). Without any, a text from its beginning.
            kwargs: as in `GenerationMixin.generate`. An `assistant_model` needs prompts without ID tokens.

        Returns:
            (B * num_return_sequences, T + written) token ids, the prompts first (not after `inputs_embeds`, which have no ids);
            with `return_dict_in_generate=True` they are the field `sequences`.

        Raises:
            InputError: prompt and new words do not fit into the context; several prompts; ID tokens with an assistant.
            ValueError: no prompt, and the backbone has no `bos_token_id`.
        """
        input_ids = kwargs.pop("input_ids", None)
        given = [one for one in (inputs, input_ids, kwargs.get("inputs_embeds")) if one is not None]
        if not given:  # the beginning of a text, or an error if the backbone has no token for it
            return super().generate(**kwargs)  # type: ignore[misc]
        if len(given) != 1:
            raise InputError(f"generate got {len(given)} prompts; give one of inputs, input_ids and inputs_embeds")
        self._check_room(given[0].shape[1], kwargs)
        if "inputs_embeds" in kwargs and kwargs["inputs_embeds"] is not None:
            return super().generate(**kwargs)  # type: ignore[misc]
        kwargs.pop("inputs_embeds", None)
        input_ids = given[0]
        if not bool((input_ids >= self.config.id_offset).any()):
            return super().generate(input_ids, **kwargs)  # type: ignore[misc]
        if kwargs.get("assistant_model") is not None:
            raise InputError(
                "assistant_model: the prompts hold ID tokens, which the assistant does not know; leave it out, or write names "
                "of users and items"
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

    def _check_room(self, length: int, settings: Mapping[str, Any]) -> None:
        """Check that a prompt of some tokens and the words that are asked for fit into the context.

        Raises:
            InputError: they do not.
        """
        asked = settings.get("max_new_tokens")
        if asked is None:
            asked = getattr(settings.get("generation_config"), "max_new_tokens", None)
        by_length = asked is None and settings.get("max_length") is not None
        wanted = settings["max_length"] - length if by_length else asked or 1
        if self.config.context_length - length < wanted or length >= self.config.context_length:
            setting = f"max_length is {settings['max_length']}" if by_length else f"max_new_tokens is {asked}"
            raise InputError(
                f"the prompt takes {length} of the {self.config.context_length} tokens of the context, {setting}: they do not "
                "fit together; shorten one of them"
            )


class CLLM4RecForRecommendation(CLLM4RecPreTrainedModel):
    """The recommender (section 3.4): a prompt with a history in, scores of all items out, in one forward pass."""

    # The loss is a mean over users, not over target items, so `Trainer` divides it by the accumulation steps itself.
    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        item_loss: ItemLoss = "exact",
        inputs_embeds: torch.Tensor | None = None,
        objective: Callable[..., ModelOutput] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Scores of the whole catalogue.

        Args:
            input_ids: (B, T) token ids of prompts, padded on either side; or `inputs_embeds` (B, T, K).
            attention_mask: (B, T).
            labels: (B, H) item indices that the multinomial likelihood counts, -100 where a row has fewer; or (B,), one each.
            item_loss: see `losses.multinomial_nll`.
            objective: a function of this model and of the other arguments, whose output is returned. A wrapper of the model (data
                parallel, sharded, autocast) thus sees every training step.
            kwargs: further arguments of the backbone's decoder, such as `output_hidden_states`, or of the objective.

        Returns:
            `RecommendationOutput` with logits (B, J), or the objective's output.

        Raises:
            InputError: labels of another shape, or beyond the catalogue.
        """
        if objective is not None:
            return objective(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        outputs = self.decode(input_ids, attention_mask, "collaborative", inputs_embeds=inputs_embeds, **kwargs)
        hidden = last_states(outputs.last_hidden_state, attention_mask)
        rows, loss = self.item_rows, None
        if labels is not None:
            loss = multinomial_nll(hidden, rows, self._item_labels(labels, len(hidden)), item_loss=item_loss).mean()
        return RecommendationOutput(
            loss=loss,
            logits=F.linear(hidden, rows.to(hidden.device, hidden.dtype)),
            last_hidden_state=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _item_labels(self, labels: torch.Tensor, batch: int) -> torch.Tensor:
        """Return (B, H) item labels of (B,) or (B, H) ones.

        Raises:
            InputError: another shape, or an item index beyond the catalogue.
        """
        if labels.dim() not in (1, 2) or len(labels) != batch:
            raise InputError(f"labels has the shape {tuple(labels.shape)}; it must be ({batch},) or ({batch}, items)")
        # Compiled code cannot stop at a value; on a device an index beyond the table ends the process without a message.
        if not torch.compiler.is_compiling() and labels.numel():
            largest = int(labels.max())
            if largest >= self.config.num_items:
                raise InputError(
                    f"labels has the item index {largest}; item indices go from 0 to {self.config.num_items - 1}, and -100 does "
                    "not count"
                )
        return labels if labels.dim() == 2 else labels[:, None]


def last_states(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the (B, K) states of the last real token of (B, T, K) rows, whichever side is padded."""
    if attention_mask is None:
        return hidden[:, -1]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (places * attention_mask.to(hidden.device)).argmax(1)  # with a device_map, the prompts may be on another one
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


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
