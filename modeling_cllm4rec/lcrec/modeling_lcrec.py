"""LC-Rec (arXiv 2311.09049): a causal language model that writes the semantic index of the next item, and only real ones.

This file and its flat siblings are self-contained because they are copied into every saved folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from transformers import AutoTokenizer, GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.utils import cached_file, can_return_tuple

from ..core.catalogue import Catalogue, KnownUsers, OnUnknown, Recommendations
from ..core.errors import InputError
from ..core.folder_checks import check_weights
from ..core.language_model import (
    check_fields,
    decoder_arguments,
    evaluating,
    new_backbone,
    next_word_loss,
    pretrained_backbone,
    published_config,
)
from ..core.questions import QuestionError, check_whole_number
from ..core.recommender import RecommenderModel
from ..core.top_items import NO_ITEM, PADDING, top_candidates
from .beam_search import FoundItems, beam_search, check_tree_attention, score_all
from .catalogue_changes import CODES, add_items, take_item_rows, with_codes
from .configuration_lcrec import LCRecConfig
from .configuration_rqvae import RQVAEConfig
from .constrained_decoding import ItemTrie
from .modeling_rqvae import RQVAEModel
from .prompts import semantic_id_prompt, semantic_id_tokens
from .semantic_ids import SemanticIds, codes_of

Scoring = Literal["beam", "all"]
INDEXER_FOLDER = "rqvae"


class LCRecForRecommendation(RecommenderModel):
    """The recommender: a prompt with the indices of a history in, the indices of real items out.

    `backbone` is an ordinary causal language model whose vocabulary holds the index tokens: `backbone.generate` with a
    `TrieLogitsProcessor` names real items only, as `recommend` does.

    Attributes:
        indexer: the model that gave the items their codes, None where they came from elsewhere.
    """

    config_class = LCRecConfig
    system = "lcrec"
    scores_catalogue = False
    search_settings = ("num_beams", "scoring")
    default_batch_size = 64
    score_name = "ln p"
    paper_metrics = ("hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10")

    accepts_loss_kwargs = True
    config: LCRecConfig
    indexer: RQVAEModel | None = None

    def __init__(self, config: LCRecConfig) -> None:
        super().__init__(config)
        self.backbone = new_backbone(config.text_config)
        self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    @property
    def id_parameters(self) -> list[torch.Tensor]:
        """The matrices that hold the index tokens' rows: token embeddings and, where it is not tied, the output layer."""
        layers = (self.backbone.get_input_embeddings(), self.backbone.get_output_embeddings())
        return list({id(layer.weight): layer.weight for layer in layers if layer is not None}.values())

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        objective: Callable[..., ModelOutput] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """As the language model inside.

        Args:
            input_ids: (B, T), or `inputs_embeds` (B, T, K); attention_mask: (B, T), padding on either side.
            labels: (B, T) tokens to be predicted at their own place (shifted inside), -100 for places that do not count.
            position_ids: (B, T); None counts the real tokens.
            shift_labels, num_items_in_batch: see `language_model.next_word_loss`.
            objective: a function of this model and of the other arguments, whose output is returned. A wrapper of the model (data
                parallel, sharded, autocast) thus sees every training step.

        Returns:
            Logits (B, T, N) and, with labels, the mean loss in nats; or the objective's output.
        """
        if objective is not None:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            return objective(self, **inputs, num_items_in_batch=num_items_in_batch, **kwargs)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise InputError("give input_ids or inputs_embeds")
        own = decoder_arguments(self.backbone.base_model, attention_mask, given.shape[1])
        if position_ids is not None:
            own["position_ids"] = position_ids
        own |= {name: value for name, value in kwargs.items() if value is not None}
        prompt = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "return_dict": True}
        outputs = self.backbone(**{**own, **prompt})
        return CausalLMOutputWithPast(
            loss=next_word_loss(outputs.logits, labels, shift_labels, num_items_in_batch),
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Not possible after `from_backbone`: the tokenizer's ids of the semantic ID tokens are part of the model."""
        raise InputError(
            f"resize_token_embeddings: the semantic ID tokens start at first_index_token={self.config.first_index_token} and are "
            "the last ones; add words to the backbone first, then call from_backbone"
        )

    @property
    def reads_queries(self) -> bool:
        """Return whether the model was aligned on queries and answers them by `search`."""
        return self.config.query_prompts is not None

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The codes of all items; read again after a change of the catalogue.

        Raises:
            InputError: the model has no catalogue with codes.
        """
        catalogue = self.require_catalogue()
        if CODES not in catalogue.table.column_names:
            raise InputError(f"the catalogue has no column {CODES!r}: it is not that of an LC-Rec model")
        return SemanticIds(codes_of(catalogue.table[CODES]), self.config.codebook_size)

    @cached_property
    def trie(self) -> ItemTrie:
        """The semantic IDs of all items as a tree; built again after a change of the catalogue."""
        return ItemTrie(self.semantic_ids.codes, self.config.codebook_size)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model's folder, which queries need.

        Raises:
            InputError: the model came from no folder.
        """
        if not self.name_or_path:
            raise InputError(
                "this model came from no folder, so it has no tokenizer to read queries with; save both and load the model, or "
                "set model.tokenizer"
            )
        return AutoTokenizer.from_pretrained(self.name_or_path, config=self.config)  # else it would ask to trust our code

    def warm_up(self) -> None:
        """Build the tree of semantic IDs on the model's device, which the first request would build."""
        self._trie_here()

    def set_indexer(self, indexer: RQVAEModel | None) -> None:
        """Attach an indexer that is no submodule of the model: it has its own folder and is not trained here."""
        self.__dict__["indexer"] = indexer

    def set_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the catalogue and its codes; row j belongs to item_index j.

        Raises:
            InputError: as `check_catalogue`.
        """
        super().set_catalogue(catalogue)
        for made_from_codes in ("semantic_ids", "trie"):
            self.__dict__.pop(made_from_codes, None)
        self.config.codes_fingerprint = self._codes_fingerprint()
        self.check_catalogue()

    def check_catalogue(self) -> None:
        """Raise InputError if catalogue, codes or users are not those of the weights."""
        super().check_catalogue()
        if self.catalogue is None:
            return
        config, index = self.config, self.semantic_ids
        if index.num_levels != config.num_levels:
            raise InputError(
                f"the catalogue's codes have {index.num_levels} levels, the model {config.num_levels}: "
                "the index belongs to another checkpoint"
            )
        if config.codes_fingerprint not in (None, self._codes_fingerprint()):
            raise InputError(
                "the semantic IDs of the items are not those that the weights were trained on (codes in catalogue.parquet, or "
                "first_index_token in config.json): they belong to another checkpoint"
            )

    def _codes_fingerprint(self) -> str:
        """Return the SHA-256 of the codes of all items and of the tokens that they are."""
        config, codes = self.config, self.semantic_ids.codes
        tokens = f"{config.first_index_token} {config.codebook_size} {codes.shape} "
        return hashlib.sha256(tokens.encode() + codes.astype("<i4").tobytes()).hexdigest()

    def build_prompts(
        self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray], template: int = 0
    ) -> list[np.ndarray]:
        """Return the token ids of the prompt for each history (item indices, oldest first); the user does not matter.

        Args:
            template: number of the template of sequential item prediction.

        Raises:
            InputError: an empty history, or a template that does not exist.
        """
        config = self.config
        templates = config.recommendation_prompts
        if templates is None or config.separator is None:
            raise InputError("this model has no recommendation prompts yet: align it (`cllm4rec align`)")
        if not 0 <= template < len(templates):
            raise InputError(f"template is {template}; the model has templates 0 to {len(templates) - 1}")
        codes = []
        for number, items in enumerate(histories):
            name = f"history {number}" if user_indices is None else f"the history of user index {user_indices[number]}"
            codes.append(self.semantic_ids.codes[self._last_items(name, items)])
        return [self._prompt(templates[template], one) for one in codes]

    def _tokens_of(self, items: np.ndarray) -> np.ndarray:
        """Return the (items, H) int64 token ids of the semantic IDs of items: indices, or a mask of all items."""
        return semantic_id_tokens(self.semantic_ids.codes[items], self.config.first_index_token, self.config.codebook_size)

    def _last_items(self, name: str, history: np.ndarray) -> np.ndarray:
        if not len(history):
            raise InputError(f"{name} is empty: LC-Rec reads items only; give at least one known item")
        return np.asarray(history, dtype=np.int64)[-self.config.max_history :]

    def _prompt(self, pieces: list[Any], codes: np.ndarray, query: Sequence[int] = ()) -> np.ndarray:
        config = self.config
        return semantic_id_prompt(
            pieces,
            codes,
            config.separator or [],
            config.first_index_token,
            config.codebook_size,
            query=list(query),
            max_length=config.context_length - config.num_levels,
        )

    def best_items(
        self,
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        k: int,
        candidates: np.ndarray | None,
        num_beams: int | None = None,
        scoring: Scoring = "beam",
        **search: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best items of each prompt; the score is ln p of an item's semantic ID after the prompt.

        Args:
            num_beams: beams of the search, at least k (default: the configuration's); it is never changed silently. Only for
                a search.
            scoring: `"beam"` searches, and what it finds has its exact score; `"all"` scores every item, so that none is
                missed, and is slower.

        Raises:
            InputError: k is larger than the number of beams, or a setting or a choice that does not exist.
        """
        self.check_search(k, num_beams=num_beams, scoring=scoring, **search)
        if scoring == "all":
            return top_candidates(self.score_prompts(prompts), seen, k, candidates)
        found = self.search_codes(prompts, seen, k, candidates, num_beams)
        return found.items.cpu().numpy(), found.scores.cpu().numpy()

    def check_search(self, k: int, num_beams: int | None = None, scoring: Scoring = "beam", **search: Any) -> None:
        """Check the settings of a search for k items, which are explained at `best_items`.

        Raises:
            QuestionError: an unknown setting, a wrong value, or fewer beams than k.
        """
        super().check_search(k, **search)
        if scoring not in ("beam", "all"):
            raise QuestionError("scoring", scoring, "'beam' and 'all'", "choose one of them")
        if num_beams is not None:
            check_whole_number("num_beams", num_beams)
        if scoring == "all":
            if num_beams is not None:
                raise QuestionError(
                    "num_beams", num_beams, "none with scoring='all', which has no beams", "leave one of them out"
                )
            return
        beams = self.config.search_beams if num_beams is None else num_beams
        if k > beams:
            raise QuestionError(
                "k", k, f"1 to {beams}, the number of beams of the search", f"give num_beams={k} or more, or a smaller k"
            )

    @torch.no_grad()
    def search_codes(
        self,
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        k: int,
        candidates: np.ndarray | None = None,
        num_beams: int | None = None,
    ) -> FoundItems:
        """Return the k best items of each prompt by a beam search, with the generated codes; errors as in `best_items`."""
        self.check_search(k, num_beams=num_beams)
        beams = self.config.search_beams if num_beams is None else num_beams
        ids, mask = self.pad_prompts(prompts)
        seen_rows = None if seen is None else _compressed(seen)
        first_token, trie = self.config.first_index_token, self._trie_here()
        with evaluating(self):
            found = beam_search(self.backbone, ids, mask, trie, first_token, beams, seen=seen_rows, candidates=candidates)
        return FoundItems(*(part[:, :k] for part in found))

    @torch.no_grad()
    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 ln p of the semantic ID of every item, exact, in evaluation mode."""
        ids, mask = self.pad_prompts(prompts)
        with evaluating(self):
            return score_all(self.backbone, ids, mask, self._trie_here(), self.config.first_index_token)

    def _trie_here(self) -> ItemTrie:
        """Return the tree on the model's device, moved once."""
        device = self.execution_device
        if self.trie.device != device:
            self.__dict__["trie"] = self.trie.to(device)
        return self.trie

    def rank_histories(
        self,
        user_indices: np.ndarray | None,
        histories: Any,
        seen: Any | None,
        k: int,
        *,
        num_beams: int | None = None,
        scoring: Scoring = "beam",
        template: int = 0,
    ) -> np.ndarray:
        """Rank the unseen items for histories. Items are read from the codes that the search wrote, not from its tree.

        Args:
            user_indices: (B,) user indices, which only name the rows in errors; None where there are none.
            histories, seen: item indices as compressed rows (`indptr`, `items`).

        Returns:
            (B, k) item indices, best first; `PADDING` where fewer were found, `NO_ITEM` for codes of no item.
        """
        rows = np.split(histories.items, histories.indptr[1:-1])
        seen_rows = None if seen is None else np.split(seen.items, seen.indptr[1:-1])
        prompts = self.build_prompts(user_indices, rows, template)
        if scoring != "beam":
            return self.best_items(prompts, seen_rows, k, None, num_beams=num_beams, scoring=scoring)[0]
        codes = self.search_codes(prompts, seen_rows, k, num_beams=num_beams).codes.cpu().numpy()
        items = self.semantic_ids.items_of(codes)
        return np.where((codes < 0).all(axis=-1), PADDING, np.where(items < 0, NO_ITEM, items))

    def describe_search(self, *, num_beams: int | None = None, scoring: Scoring = "beam", template: int = 0) -> str:
        """Return how a search with these settings decodes, for the protocol of an evaluation."""
        beams = self.config.search_beams if num_beams is None else num_beams
        how = f"constrained search with {beams} beams" if scoring == "beam" else "all indices scored"
        return f"{how}, template {template}"

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        """Return (items, K) float32 sums of the embeddings of each item's semantic ID tokens."""
        tokens = self._tokens_of(items)
        words: Any = self.backbone.get_input_embeddings()
        with torch.no_grad():
            return np.asarray(words(torch.from_numpy(tokens).to(self.execution_device)).float().sum(1).cpu().numpy())

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        histories: Sequence[Sequence[Any]] | None = None,
        candidates: Sequence[Any] | None = None,
        exclude_seen: bool = True,
        template: int = 0,
        on_unknown: OnUnknown = "raise",
        batch_size: int = 64,
        **search: Any,
    ) -> Recommendations:
        """Return the k best items for text queries (intention tasks, section III-C.2 of the paper).

        Args:
            queries: one text per user.
            k: how many.
            histories: external item ids of each user, oldest first; None for users without a history.
            candidates: external item ids to choose from; None means the whole catalogue.
            exclude_seen: do not recommend items of the history.
            template: number of the template.
            on_unknown: `"raise"` names unknown items; `"skip"` leaves them out of histories and candidates, and queries whose
                history has no known item.
            batch_size: queries searched for in one pass.
            search: `num_beams` and `scoring` as in `best_items`.

        Returns:
            `Recommendations`; the user is the query's number.

        Raises:
            InputError: an empty query, a history for some users only, an empty history, unknown items, k out of range, or
                settings as in `best_items`; before anything is searched.

        Example:
            >>> model.search(["a gentle cleanser for dry skin"], k=3)  # doctest: +SKIP
        """
        question = self.read_question(None, histories, queries, k, exclude_seen, candidates, on_unknown, **search)
        return Recommendations(pa.concat_tables(self.iter_answers(question, batch_size, template=template)))

    def build_query_prompts(
        self, queries: Sequence[str], histories: Sequence[np.ndarray] | None = None, template: int = 0
    ) -> list[np.ndarray]:
        """Return the token ids of the prompt for each query.

        Args:
            histories: item indices of each user, oldest first; None for queries alone.
            template: number of the template.

        Raises:
            InputError: a template that does not exist, or a query that does not fit into the context.
        """
        pieces = (self.config.query_prompts or {})["alone" if histories is None else "history"]
        if not 0 <= template < len(pieces):
            raise InputError(f"template is {template}; the model has templates 0 to {len(pieces) - 1}")
        if not queries:
            return []
        words = self.tokenizer(list(queries), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        last = [np.zeros(0, np.int64)] * len(queries)
        if histories is not None:
            last = [self._last_items(f"histories[{number}]", items) for number, items in enumerate(histories)]
        rows = [self.semantic_ids.codes[items] for items in last]
        return [self._prompt(pieces[template], row, query) for row, query in zip(rows, words, strict=True)]

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | Path,
        *,
        semantic_ids: SemanticIds,
        first_index_token: int,
        catalogue: Catalogue | pa.Table | Sequence[Any],
        users: KnownUsers | None = None,
        indexer: RQVAEModel | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **config_arguments: Any,
    ) -> LCRecForRecommendation:
        """Build a new model around a pretrained causal language model; the rows of its semantic ID tokens are random.

        Args:
            name_or_path: folder or name on the Hub, as for `AutoModelForCausalLM.from_pretrained`.
            semantic_ids: the codes of all items; first_index_token: what `tokenization_lcrec.add_semantic_id_tokens` returned.
            catalogue: the items in the order of the index, as external ids, a table, or a `Catalogue`.
            users: known users and their histories.
            indexer: the RQ-VAE that made the index.
            dtype: type of the weights; training wants float32 (with bf16 autocast).
            seed: start of the random numbers of the new rows.
            config_arguments: further fields of `LCRecConfig`.

        Raises:
            InputError: an index of another number of items than the catalogue's, index tokens amid the backbone's own, a field
                that the configuration does not have, an adapter in place of a whole language model.
        """
        check_fields(LCRecConfig, config_arguments)
        catalogue = catalogue if isinstance(catalogue, Catalogue) else Catalogue(catalogue)
        if semantic_ids.num_items != len(catalogue):
            raise InputError(
                f"the index names {semantic_ids.num_items} items and the catalogue has {len(catalogue)}: it is that of another "
                "catalogue; run `cllm4rec index-items` on this data"
            )
        backbone, tokenizer = pretrained_backbone(name_or_path, dtype)
        words: Any = backbone.get_input_embeddings()
        own_words = words.num_embeddings
        lowest = len(tokenizer) if tokenizer is not None else own_words
        if first_index_token < lowest:
            raise InputError(
                f"first_index_token is {first_index_token}, but the backbone has {lowest} tokens of its own; "
                "add the semantic ID tokens behind them (tokenization_lcrec.add_semantic_id_tokens)"
            )
        needed = first_index_token + semantic_ids.num_levels * semantic_ids.codebook_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if needed > own_words:
                backbone.resize_token_embeddings(needed, mean_resizing=False)
            config = LCRecConfig(
                text_config=published_config(backbone),
                num_items=len(catalogue),
                num_users=0 if users is None else len(users),
                num_levels=semantic_ids.num_levels,
                codebook_size=semantic_ids.codebook_size,
                first_index_token=first_index_token,
                catalogue_fingerprint=catalogue.ids.fingerprint,
                dtype=dtype,
                **config_arguments,
            )
            model = cls._around(backbone, tokenizer, config, dtype)
        model.users = users
        model.set_indexer(indexer)
        model.set_catalogue(with_codes(catalogue, semantic_ids.codes))
        check_tree_attention(model.eval().backbone)
        return model

    @torch.no_grad()
    def start_semantic_id_rows(self, item_tokens: Sequence[np.ndarray], noise: float = 0.1) -> None:
        """Start the row of each index token from the words of the items that bear it, instead of at random.

        Args:
            item_tokens: token ids of each item's words, empty where it has none.
            noise: standard deviation of what is added, as a share of the mean rows' own, so that no two tokens start alike.

        A token that no item with words bears keeps its random row.
        """
        known = np.array([len(tokens) > 0 for tokens in item_tokens])
        tokens = torch.from_numpy(self._tokens_of(known))
        owner = torch.from_numpy(np.repeat(np.arange(known.sum()), [len(words) for words in item_tokens if len(words)]))
        words = torch.from_numpy(np.concatenate([words for words in item_tokens if len(words)]).astype(np.int64))
        generator = torch.Generator().manual_seed(0)
        for weight in self.id_parameters:
            table = weight.detach().float().cpu()
            count = torch.bincount(owner).clamp(min=1)[:, None]
            items = torch.zeros(int(known.sum()), table.shape[1]).index_add(0, owner, table[words]) / count
            sums = torch.zeros_like(table).index_add(0, tokens.flatten(), items.repeat_interleave(tokens.shape[1], 0))
            bearers = torch.bincount(tokens.flatten(), minlength=len(table))
            borne = bearers > 0
            rows = sums[borne] / bearers[borne, None]
            rows += noise * rows.std() * torch.randn(rows.shape, generator=generator)
            weight[borne.to(weight.device)] = rows.to(weight)

    def require_indexer(self) -> RQVAEModel:
        """Return the indexer, which assigns codes to new items.

        Raises:
            InputError: there is none, because the index was not made from texts, or its folder is lost.
        """
        if self.indexer is None:
            raise InputError(
                f"this model was saved without its indexer ({INDEXER_FOLDER}/), so it cannot index new items: vanilla and random "
                "codes, those by co-occurrence, in whole or in part, and those of a file say nothing of an item that nobody has "
                "met; index with method='rqvae' or method='rk-means', without co_occurrence, and align again"
            )
        return self.indexer

    def add_items(
        self,
        items: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]],
        embeddings: np.ndarray | None = None,
        *,
        encoder: str | None = None,
        progress: bool = False,
    ) -> None:
        """Add new items to the catalogue without training; see `catalogue_changes.add_items`.

        Example:
            >>> model.add_items([{"item_id": "B9", "title": "Rose soap", "description": "For hands."}])  # doctest: +SKIP
        """
        add_items(self, items, embeddings, encoder=encoder, progress=progress)

    def _take_item_rows(self, rows: np.ndarray) -> None:
        take_item_rows(self, rows)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As `RecommenderModel.from_pretrained`, with the indexer where the folder has one."""
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        hub = {name: kwargs[name] for name in names if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        file = f"{INDEXER_FOLDER}/config.json"
        if cached_file(pretrained_model_name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False) is not None:
            model.set_indexer(_load_indexer(pretrained_model_name_or_path, {**hub, "subfolder": INDEXER_FOLDER}, model.config))
        return loaded

    def _save_more(self, folder: Path) -> None:
        if self.indexer is not None:
            self.indexer.save_pretrained(folder / INDEXER_FOLDER)


def _load_indexer(name: Any, hub: dict[str, Any], config: LCRecConfig) -> RQVAEModel:
    """Load the indexer of a folder.

    Raises:
        InputError: its files are damaged, or it makes other codes than those of the model.
    """
    try:
        own = RQVAEConfig.from_pretrained(name, **hub)
    except InputError as error:
        raise InputError(f"{INDEXER_FOLDER}/config.json: {error}") from error
    except (AttributeError, OSError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"{INDEXER_FOLDER}/config.json in {name} cannot be read ({reason}); copy or download the folder again"
        ) from error
    if (own.num_levels, own.codebook_size) != (config.num_levels, config.codebook_size):
        raise InputError(
            f"{INDEXER_FOLDER}/ makes {own.num_levels} codes out of {own.codebook_size}, the model has {config.num_levels} out "
            f"of {config.codebook_size}: it belongs to another checkpoint"
        )
    check_weights(name, own, RQVAEModel, hub)
    return RQVAEModel.from_pretrained(name, use_safetensors=True, **hub)


def _compressed(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as (indptr, values)."""
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)


class LCRecForCausalLM(LCRecForRecommendation, GenerationMixin):
    """The same model for `AutoModelForCausalLM`, `generate` and `pipeline("text-generation")`.

    Nothing constrains what it writes: give `generate` a `TrieLogitsProcessor`, or use `recommend`, for real items only.

    The tokens of semantic IDs are special tokens, so that a text of a user can never be read as one. Therefore
    `skip_special_tokens=True`, which pipelines set, leaves them out: pass `skip_special_tokens=False`, or decode the token ids.
    """


__all__ = ["INDEXER_FOLDER", "LCRecForCausalLM", "LCRecForRecommendation", "Scoring"]
