"""CLLM4Rec (arXiv 2311.01343): a causal language model that knows users and items as tokens.

This file and its flat siblings stand alone: they are copied into every saved folder.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, ModelOutput
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils.hub import resolve_revision

from .catalogue import CATALOGUE_FILE, USERS_FILE, Catalogue, KnownUsers, OnUnknown, Recommendations
from .configuration_cllm4rec import CLLM4RecConfig
from .losses import ItemLoss, multinomial_nll
from .prompt_assembly import assemble, pad_right
from .top_items import top_items

Side = Literal["collaborative", "content"]
SIDES: tuple[Side, Side] = ("collaborative", "content")
CARD_FILE = "README.md"
FLAT_FILES = (
    "catalogue.py",
    "configuration_cllm4rec.py",
    "losses.py",
    "modeling_cllm4rec.py",
    "prompt_assembly.py",
    "top_items.py",
)
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_UPLOAD_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr")


@dataclass
class RecommendationOutput(ModelOutput):
    """What `CLLM4RecForRecommendation` returns.

    Attributes:
        loss: () mean over the batch of the multinomial negative log-likelihood, when `labels` were given.
        logits: (batch, J) scores of all items.
        last_hidden_state: (batch, K) state of each prompt's last real token.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class CLLM4RecPreTrainedModel(PreTrainedModel):
    """The backbone, the four ID tables, and the folder that holds them (weights, catalogue, users, card, code)."""

    config_class = CLLM4RecConfig
    # Not "model": Llama's inner `model.` would be taken for ours, and the backbone would reload at random.
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    config: CLLM4RecConfig

    def __init__(self, config: CLLM4RecConfig) -> None:
        super().__init__(config)
        # A copy: a shared config would lose its attention implementation, and attention its causality.
        text_config = copy.deepcopy(config.text_config)
        self.backbone = AutoModelForCausalLM.from_config(text_config, dtype=torch.get_default_dtype())
        width = self.backbone.get_input_embeddings().embedding_dim
        if width != config.hidden_size:
            raise ValueError(
                f"the backbone's word embeddings have width {width} and its states {config.hidden_size}: an ID row is "
                "both input and output and needs one width; choose another backbone"
            )
        self.user_collaborative = nn.Embedding(config.num_users, width)
        self.item_collaborative = nn.Embedding(config.num_items, width)
        self.user_content = nn.Embedding(config.num_users, width)
        self.item_content = nn.Embedding(config.num_items, width)
        self.catalogue: Catalogue | None = None
        self.users: KnownUsers | None = None
        self.card: str | None = None
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
        raise ValueError(f"side is {side!r}; allowed are 'collaborative' and 'content'")

    def get_input_embeddings(self) -> nn.Module:
        """Word embeddings (N, K) of the backbone; ID rows are in `tables`."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's word embeddings."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's output layer over words."""
        return self.backbone.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The backbone without its output layer."""
        return self.backbone.base_model

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not possible: ID tokens follow the words by arithmetic, more words would shift them all."""
        raise ValueError(
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
        if _is_left_padded(attention_mask):
            kwargs.setdefault("position_ids", _positions(attention_mask))  # type: ignore[arg-type]
        outputs = self.backbone.base_model(
            inputs_embeds=self.embed_tokens(input_ids, side),
            attention_mask=attention_mask,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        return outputs.last_hidden_state

    def word_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., N) logits over words, the content head f_c, of (..., K) states."""
        body = self.backbone.base_model
        heads = [module for module in self.backbone.children() if module is not body]
        if len(heads) != 1:
            raise ValueError(
                f"{type(self.backbone).__name__} has {len(heads)} parts beside its decoder; expected its output layer alone"
            )
        return heads[0](hidden)

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
        """A fresh model around a pretrained causal language model.

        Args:
            name_or_path: what `AutoModelForCausalLM.from_pretrained` takes.
            num_users, users: number of users, or their external ids (a `KnownUsers` keeps histories too).
            num_items, catalogue: number of items, or their external ids (a `Catalogue` keeps titles too).
            dtype: type of the weights; training wants float32 (with bf16 autocast).
            seed: start of the random numbers of the ID rows.
            config_arguments: further fields of `CLLM4RecConfig`.

        Raises:
            ValueError: a count and ids, or neither; ids that mix types or stand twice; a field that the configuration does
                not have; a backbone whose shape or output layer cannot be used.

        Example:
            >>> model = CLLM4RecForRecommendation.from_backbone(
            ...     "gpt2", users=["ann"], catalogue=["B1", "B2"])  # doctest: +SKIP
        """
        _check_fields(config_arguments)
        if users is not None and not isinstance(users, KnownUsers):
            users = KnownUsers(users)
        if catalogue is not None and not isinstance(catalogue, Catalogue):
            catalogue = Catalogue(catalogue)
        backbone = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
        text_config = copy.deepcopy(backbone.config)
        tokenizer = _tokenizer(name_or_path)
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
            model = cls._from_config(config, dtype=dtype)
        model.backbone.load_state_dict(backbone.state_dict())
        model.generation_config = _greedy(backbone.generation_config, tokenizer)
        model.catalogue, model.users = catalogue, users
        _check_backbone(model)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, with the folder's catalogue, users and card.

        Raises:
            ValueError: weights that are missing, cut off or of another shape, or a catalogue of another checkpoint. Nothing
                is left at random silently.
        """
        where = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
        revision = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **where)
        if revision is not None:  # one commit, from which all files come
            kwargs["revision"] = revision
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by name
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except (SafetensorError, EOFError) as error:
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} cannot be read ({error}): the file is cut off or no "
                "safetensors file; copy or download the folder again"
            ) from error
        model, info = loaded
        broken = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        if broken:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks weights of this model or has them in another shape: {broken[:5]} "
                f"({len(broken)} in all); it is no complete CLLM4Rec checkpoint"
            )
        parts: list[tuple[str, str, Callable[[str], Any]]] = [
            ("catalogue", CATALOGUE_FILE, Catalogue.load),
            ("users", USERS_FILE, KnownUsers.load),
            ("card", CARD_FILE, _read_text),
        ]
        if not model.can_generate():
            parts.append(("generation_config", GENERATION_CONFIG_NAME, _read_generation_config))
        for name, file, load in parts:
            path = cached_file(
                pretrained_model_name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False
            )
            if path is not None:
                setattr(model, name, load(path))
        model.check_catalogue()
        return (model, info) if wants_info else model

    def check_catalogue(self) -> None:
        """Raise ValueError if catalogue or users are not those of the weights."""
        config, catalogue, users = self.config, self.catalogue, self.users
        if catalogue is not None and len(catalogue) != config.num_items:
            raise ValueError(
                f"{CATALOGUE_FILE} holds {len(catalogue)} items, the weights {config.num_items}: "
                "it belongs to another checkpoint"
            )
        if catalogue is not None and config.catalogue_fingerprint not in (None, catalogue.ids.fingerprint):
            raise ValueError(
                f"{CATALOGUE_FILE} holds other items, or in another order, than the weights were trained on: "
                "it belongs to another checkpoint"
            )
        if users is not None and len(users) != config.num_users:
            raise ValueError(
                f"{USERS_FILE} holds {len(users)} users, the weights {config.num_users}: it belongs to another checkpoint"
            )
        last = -1 if users is None or users.items is None else int(np.max(users.items, initial=-1))
        if last >= config.num_items:
            raise ValueError(
                f"{USERS_FILE} has histories with item {last}, the catalogue ends at {config.num_items - 1}: "
                "it belongs to another checkpoint"
            )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, *, include_histories: bool = True, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, and catalogue, users, card and code beside the weights.

        Args:
            include_histories: False leaves the users' histories out, for privacy; they are then given at the call.
        """
        self.check_catalogue()
        for part, file in ((self.catalogue, CATALOGUE_FILE), (self.users, USERS_FILE)):
            if part is None and (Path(save_directory) / file).exists():
                raise FileExistsError(
                    f"{save_directory} holds a {file} of another model, this model has none and would be loaded with it; "
                    "save into another folder, or delete that file"
                )
        push = kwargs.pop("push_to_hub", False)
        upload = {name: kwargs.pop(name) for name in _UPLOAD_ARGUMENTS if name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        for file in FLAT_FILES:
            source, target = Path(__file__).parent / file, Path(save_directory) / file
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        if not self.can_generate():
            self.generation_config.save_pretrained(save_directory)
        if self.catalogue is not None:
            self.catalogue.save(save_directory)
        if self.users is not None:
            (self.users if include_histories else self.users.without_histories()).save(save_directory)
        if self.card is not None:
            (Path(save_directory) / CARD_FILE).write_text(self.card, encoding="utf-8")
        if push:
            _upload(save_directory, **{"repo_id": Path(save_directory).name, **upload}, token=kwargs.get("token"))

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        include_histories: bool = True,
    ) -> str:
        """Upload what `save_pretrained` writes, the generated card included.

        Args:
            repo_id: `name` or `organization/name`; made if there is no such repository.
            private: visibility of a repository that is made; None means the owner's default.
            revision: branch to commit to; made from the main one if there is no such branch.
            create_pr: propose the commit as a pull request.
            include_histories: as in `save_pretrained`.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, include_histories=include_histories, max_shard_size=max_shard_size)
            return _upload(
                folder,
                repo_id,
                token=token,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to register: every folder is saved with its code and the whole `auto_map`."""


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
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids, "content")  # type: ignore[arg-type]
        if position_ids is None and _is_left_padded(attention_mask):
            position_ids = _positions(attention_mask)[:, -inputs_embeds.shape[1] :]  # type: ignore[arg-type]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        kwargs.pop("return_dict", None)
        outputs = self.backbone(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True, **kwargs
        )
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
            ValueError: prompt and new words do not fit into the context.
        """
        room = self.config.context_length - input_ids.shape[1]
        if room < (kwargs.get("max_new_tokens") or 1):
            raise ValueError(
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

    def prompt_state(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
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

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return self.config.num_items

    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Token ids of the recommendation prompt for each history (item indices, oldest first)."""
        config = self.config
        if config.recommendation_prompts is None:
            raise ValueError("this model has no recommendation prompt yet: finetune it, or set config.recommendation_prompts")
        limit = min(config.context_length, config.max_history_tokens or config.context_length)
        first_item = config.id_offset + config.num_users
        prompts = []
        for number, history in enumerate(histories):
            items = np.asarray(history, dtype=np.int64) + first_item
            user = -1 if user_indices is None else int(user_indices[number])
            pieces = config.recommendation_prompts["known" if user >= 0 else "anonymous"]
            prompts.append(assemble(pieces, user=config.id_offset + user, items=items, max_length=limit))
        return prompts

    @torch.no_grad()
    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, J) float32 scores, on the model's device, of prompts as token ids."""
        ids = pad_right(prompts, 0)
        mask = np.arange(ids.shape[1]) < np.array([len(prompt) for prompt in prompts])[:, None]
        device = self.item_collaborative.weight.device
        hidden = self.prompt_state(torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device))
        return self.item_logits(hidden).float()

    def score_histories(self, user_indices: np.ndarray | None, histories: Any) -> np.ndarray:
        """(batch, J) float32 scores of histories given as compressed rows (`indptr`, `items`), in evaluation mode."""
        rows = np.split(histories.items, histories.indptr[1:-1])
        was_training = self.training
        self.eval()
        scores = self.score_prompts(self.build_prompts(user_indices, rows)).cpu().numpy()
        self.train(was_training)
        return scores

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int = 256,
    ) -> Recommendations:
        """The k best items for users, for histories, or for users with histories given beside them.

        Args:
            users: external user ids; without `histories`, their stored histories are read.
            histories: external item ids, oldest first, one list a person. With `users` the given history counts, without
                they are people whom the model never met. More items than the context holds: the last ones are read.
            k: how many, at most the number of candidates. Who has fewer unseen candidates gets fewer rows.
            exclude_seen: do not recommend what stands in the history.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` names unknown ids; `"skip"` leaves unknown users, items and candidates out.
            batch_size: people scored in one pass.

        Returns:
            `Recommendations` with columns user, item, rank, score.

        Raises:
            ValueError: unknown ids, an empty history of a person without an ID token, k out of range.
        """
        tables = list(self.iter_recommendations(users, histories, k, exclude_seen, candidates, on_unknown, batch_size))
        return Recommendations(pa.concat_tables(tables))

    def iter_recommendations(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int = 256,
        progress: bool = False,
    ) -> Iterator[pa.Table]:
        """As `recommend`, a table a batch, in the order asked: constant memory for millions of people."""
        catalogue, known = self._require_catalogue(), self.users
        if users is None and histories is None:
            raise ValueError("recommend needs users=, histories=, or both")
        for name, ids in (("users", users), ("histories", histories), ("candidates", candidates)):
            if ids is not None:
                _check_list(name, ids)
        if users is not None and histories is not None and len(users) != len(histories):
            raise ValueError(f"got {len(users)} users and {len(histories)} histories; give one history for each user")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        allowed = None
        if candidates is not None:
            found = catalogue.ids.indices_of(candidates, on_unknown)
            allowed = torch.from_numpy(np.unique(found[found >= 0]))
        choices = len(catalogue) if allowed is None else len(allowed)
        if not 1 <= k <= choices:
            raise ValueError(f"k is {k}; it must lie between 1 and the {choices} items to choose from")
        user_indices = None
        keep = np.arange(len(users if users is not None else histories or []))
        if users is not None:
            if known is None:
                raise ValueError("this model knows no users; pass histories= instead")
            user_indices = known.ids.indices_of(users, on_unknown)
            keep = keep[user_indices >= 0]
        names = None if users is None else known.ids.array  # type: ignore[union-attr]
        with tqdm(total=len(keep), desc="recommending", unit="user", disable=not progress) as bar:
            for start in range(0, max(len(keep), 1), batch_size):
                rows = keep[start : start + batch_size]
                indices = None if user_indices is None else user_indices[rows]
                if histories is None:
                    read = [known.history(int(index)) for index in indices]  # type: ignore[union-attr]
                else:
                    read = [self._read_history(int(row), histories[row], indices is None, on_unknown) for row in rows]
                best, scores = self._best(indices, read, k, exclude_seen, allowed)
                labels = pa.array(rows) if names is None else names.take(pa.array(indices))
                yield self._as_table(labels, best, scores)
                bar.update(len(rows))

    def _require_catalogue(self) -> Catalogue:
        if self.catalogue is None:
            raise ValueError(
                f"this model has no catalogue ({CATALOGUE_FILE}), so it cannot name items; "
                "build it with from_backbone(catalogue=...) or set model.catalogue"
            )
        return self.catalogue

    def _read_history(self, row: int, history: Sequence[Any], anonymous: bool, on_unknown: OnUnknown) -> np.ndarray:
        _check_list(f"histories[{row}]", history)
        indices = self._require_catalogue().ids.indices_of(history, on_unknown)
        indices = indices[indices >= 0]
        if anonymous and not len(indices):
            raise ValueError(f"histories[{row}] is empty: a person without an ID token needs at least one known item")
        return indices

    def _best(
        self,
        user_indices: np.ndarray | None,
        histories: Sequence[np.ndarray],
        k: int,
        exclude_seen: bool,
        allowed: torch.Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if not len(histories):
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        was_training = self.training
        self.eval()
        scores = self.score_prompts(self.build_prompts(user_indices, histories))
        self.train(was_training)
        if exclude_seen:
            row = torch.from_numpy(np.repeat(np.arange(len(histories)), [len(history) for history in histories]))
            scores[row.to(scores.device), torch.from_numpy(np.concatenate(histories)).to(scores.device)] = float("-inf")
        if allowed is None:
            best, found = top_items(scores, k)
        else:
            allowed = allowed.to(scores.device)
            place, found = top_items(scores[:, allowed], k)
            best = torch.where(place >= 0, allowed[place.clamp(min=0)], -1)
        return best.cpu().numpy(), found.cpu().numpy()

    def _as_table(self, labels: pa.Array, best: np.ndarray, scores: np.ndarray) -> pa.Table:
        row, rank = np.nonzero(best >= 0)
        return pa.table(
            {
                "user": labels.take(pa.array(row)),
                "item": self._require_catalogue().ids.array.take(pa.array(best[row, rank])),
                "rank": pa.array(rank + 1, pa.int32()),
                "score": pa.array(scores[row, rank], pa.float32()),
            }
        )


def _tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """The backbone's tokenizer, None if its folder has none (`AutoTokenizer` would make an empty one)."""
    for file in ("tokenizer_config.json", "tokenizer.json"):
        if cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False) is not None:
            return AutoTokenizer.from_pretrained(name_or_path)
    return None


def _greedy(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None) -> GenerationConfig:
    """How the content LM writes by default: always the likeliest word, up to the token that closes a text.

    Of the backbone's own settings, which may sample, only its tokens are taken. Where it names none, its tokenizer does:
    the end of text, else the separator (BERT), as in the documents that the content LM is trained on.
    """
    bos, eos, pad = own.bos_token_id, own.eos_token_id, own.pad_token_id
    if tokenizer is not None and eos is None:
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if tokenizer is not None and pad is None:
        pad = tokenizer.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(do_sample=False, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)


def _is_left_padded(attention_mask: torch.Tensor | None) -> bool:
    return attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask[:, 0].all())


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) places of the real tokens among themselves: left padding counts for nothing."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def _check_fields(arguments: dict[str, Any]) -> None:
    """Refuse what a configuration would take and never read."""
    names = [name for name in inspect.signature(CLLM4RecConfig).parameters if name not in ("text_config", "kwargs")]
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(name, names)
            raise ValueError(f"from_backbone: unknown field {name!r}; nearest: {near or names}")


def _count(count_name: str, count: int | None, ids_name: str, ids: Catalogue | KnownUsers | None) -> int:
    if (count is None) == (ids is None):
        raise ValueError(f"from_backbone: give exactly one of {count_name}= and {ids_name}=")
    number = count if ids is None else len(ids)
    if number is None or number < 1:
        raise ValueError(f"from_backbone: {count_name} is {number}; it must be 1 or more")
    return number


@torch.no_grad()
def _check_backbone(model: CLLM4RecPreTrainedModel) -> None:
    """Refuse a backbone whose own logits are not its output layer applied to its decoder's states."""
    model.eval()
    ids = torch.arange(4)[None] % model.config.vocab_size
    mask = torch.ones_like(ids)
    ours = model.word_logits(model.hidden_states(ids, mask, "content"))
    theirs = model.backbone(input_ids=ids, attention_mask=mask).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model.backbone).__name__} computes its logits in a way that this model does not reproduce "
            "(difference above 1e-3 on a probe); choose another backbone"
        )


def _check_list(name: str, ids: Any) -> None:
    if isinstance(ids, str) or not hasattr(ids, "__len__"):
        raise ValueError(f"{name} is the {type(ids).__name__} {ids!r}; give a list, as [{ids!r}]")


def _read_text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _read_generation_config(path: str) -> GenerationConfig:
    return GenerationConfig.from_dict(json.loads(_read_text(path)))


def _upload(
    folder: Any,
    repo_id: str,
    *,
    token: bool | str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return str(
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload CLLM4Rec model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    )


__all__ = [
    "CLLM4RecForCausalLM",
    "CLLM4RecForRecommendation",
    "CLLM4RecModel",
    "CLLM4RecPreTrainedModel",
    "RecommendationOutput",
]
