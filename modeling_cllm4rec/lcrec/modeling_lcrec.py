"""LC-Rec (arXiv 2311.09049): a causal language model that writes the semantic index of the next item, and only real ones.

This file and its flat siblings are self-contained because they are copied into every saved folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.utils import cached_file, can_return_tuple

from ..core.catalogue import Catalogue, KnownUsers, OnUnknown, Recommendations
from ..core.errors import InputError, MissingFileError
from ..core.json_objects import COPY_AGAIN
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
from ..core.questions import Question, QuestionError
from ..core.recommender import RecommenderModel
from ..core.top_items import NO_ITEM, PADDING, top_candidates
from .beam_search import FoundItems, beam_search, check_tree_attention, score_all
from .catalogue_changes import CODES, add_items, take_item_rows, with_codes
from .configuration_lcrec import LCRecConfig
from .constrained_decoding import ItemTrie
from .exact_search import best_of_all
from .item_head import ItemHead, ItemLookup, head_fields
from .modeling_rqvae import INDEXER_FOLDER, RQVAEModel, load_indexer
from .prompts import check_index_tokens, semantic_id_prompt, semantic_id_tokens
from .search_settings import Beams, Scoring, check_search_settings, scoring_of, search_words
from .semantic_ids import SemanticIds, codes_of


class LCRecForRecommendation(RecommenderModel):
    """The recommender: a prompt with the indices of a history in, the indices of real items out.

    `backbone` is an ordinary causal language model whose vocabulary holds the index tokens: `backbone.generate` with a
    `TrieLogitsProcessor` names real items only, as `recommend` does.

    Attributes:
        indexer: the model that gave the items their codes, None where they came from elsewhere.
        item_head: scores all items from one state; None for a model that only writes semantic IDs.
    """

    config_class = LCRecConfig
    system = "lcrec"
    scores_catalogue = False
    search_settings = ("num_beams", "scoring")
    default_batch_size = 64
    score_name = "ln p"
    saved_subfolders = (INDEXER_FOLDER,)
    paper_metrics = ("hit_rate@1", "hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10")

    accepts_loss_kwargs = True
    config: LCRecConfig
    indexer: RQVAEModel | None = None

    def __init__(self, config: LCRecConfig) -> None:
        super().__init__(config)
        self.backbone = new_backbone(config.text_config)
        self.item_head: ItemHead | None = None
        if config.item_head:
            sizes = config.item_head_embedding_size, config.item_head_text_size
            self.item_head = ItemHead(config.num_items, config.hidden_size, *sizes)
        if config.item_inputs:
            # A hook, because searches, exports and `generate` read prompts through the backbone, which is a plain language model.
            self.backbone.get_input_embeddings().register_forward_hook(self._add_item_rows)
        self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    @property
    def id_parameters(self) -> list[torch.Tensor]:
        """The matrices that hold the index tokens' rows (`token_matrices`), and the item head's."""
        return [*self.token_matrices, *(() if self.item_head is None else self.item_head.parameters())]

    @property
    def token_matrices(self) -> list[torch.Tensor]:
        """The matrices with a row for each token: token embeddings and, where it is not tied, the output layer."""
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
            **{CACHE: outputs.get(CACHE)},
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
            InputError: the model came from no folder, or the folder has no tokenizer, a damaged one, or that of another model.
        """
        if not self.name_or_path:
            raise InputError(
                "this model came from no folder, so it has no tokenizer to read queries with; save both and load the model, or "
                "set model.tokenizer"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.name_or_path, config=self.config
            )  # else it would ask to trust our code
        except Exception as error:  # the tokenizers library raises `Exception` itself
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"the tokenizer in {self.name_or_path} cannot be read ({reason}); {COPY_AGAIN}") from error
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that a tokenizer has the tokens of the semantic IDs."""
        check_index_tokens(tokenizer.get_vocab(), *self.config.index_tokens)

    @cached_property
    def item_lookup(self) -> ItemLookup:
        """The items by their tokens, for `item_inputs`; made again after a change of the catalogue."""
        config = self.config
        return ItemLookup.of(self.semantic_ids.codes, config.first_index_token, config.codebook_size, self.execution_device)

    def _add_item_rows(self, module: nn.Module, inputs: tuple[Any, ...], embeddings: torch.Tensor) -> torch.Tensor:
        """Add each item's row to the last token of its semantic ID.

        A whole semantic ID is needed: one that a search or `generate` is still writing, token by token, gets none.

        Args:
            inputs: the (B, T) token ids that the embedding layer was given; embeddings: (B, T, K), what it returned.
        """
        assert self.item_head is not None
        if self.item_lookup.keys.device != inputs[0].device:
            self.__dict__["item_lookup"] = self.item_lookup.to(inputs[0].device)
        rows = self.item_head.rows_of(self.item_lookup.items_at(inputs[0]))
        return embeddings + rows.to(embeddings)

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
        for made_from_codes in ("semantic_ids", "trie", "item_lookup"):
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

    def tokens_of(self, items: np.ndarray) -> np.ndarray:
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
        histories: Sequence[np.ndarray] | None = None,
        num_beams: Beams | None = None,
        scoring: Scoring | None = None,
        **search: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best items of each prompt; the score is ln p of an item's semantic ID after the prompt, or of the head.

        Args:
            histories: of the linear parts, which are added where the whole catalogue is scored; a search does without them.
            num_beams: beams of the search, at least k (default: the configuration's); it is never changed silently. A list has
                the beams of each level, the last of which are at least k. Only for a search.
            scoring: `"beam"` searches, and what it finds has its exact score; `"all"` returns the exact best items of the whole
                catalogue, and is slower; `"head"` scores all items by the item head in one pass (default: `config.scoring`, but
                `"beam"` where num_beams is given).

        Raises:
            InputError: k is larger than the number of beams, or a setting or a choice that does not exist.
        """
        self.check_search(k, num_beams=num_beams, scoring=scoring, **search)
        scoring = scoring_of(self.config, num_beams, scoring)
        linear = self.linear_parts is not None and histories is not None
        if scoring == "head" or (scoring == "all" and linear):  # linear parts are added to the scores of all items
            scores = self.head_scores(prompts) if scoring == "head" else self.score_prompts(prompts)
            return top_candidates(self.with_linear_parts(scores, histories), seen, k, candidates)
        if scoring == "all":
            found = self._search(best_of_all, prompts, seen, k, candidates)
        else:
            found = self.search_codes(prompts, seen, k, candidates, num_beams)
        return found.items.cpu().numpy(), found.scores.cpu().numpy()

    def adds_linear_parts(self, question: Question) -> bool:
        """Return whether the scores of the answers to a question are those of a hybrid; a search does without linear parts."""
        asked = (question.search.get(name) for name in ("num_beams", "scoring"))
        return super().adds_linear_parts(question) and scoring_of(self.config, *asked) != "beam"

    def check_search(self, k: int, num_beams: Beams | None = None, scoring: Scoring | None = None, **search: Any) -> None:
        """Check the settings of a search for k items, which are explained at `best_items`.

        Raises:
            QuestionError: an unknown setting, a wrong value, or fewer beams than k.
        """
        super().check_search(k, **search)
        check_search_settings(self.config, k, num_beams, scoring)

    @torch.no_grad()
    def search_codes(
        self,
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        k: int,
        candidates: np.ndarray | None = None,
        num_beams: Beams | None = None,
    ) -> FoundItems:
        """Return the k best items of each prompt by a beam search, with the generated codes; errors as in `best_items`."""
        self.check_search(k, num_beams=num_beams, scoring="beam")
        beams = self.config.search_beams if num_beams is None else num_beams
        found = self._search(beam_search, prompts, seen, beams, candidates)
        return FoundItems(*(part[:, :k] for part in found))

    @torch.no_grad()
    def _search(
        self,
        search: Callable[..., FoundItems],
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        number: Beams,
        candidates: np.ndarray | None,
    ) -> FoundItems:
        """Search after prompts with `beam_search`, or another function of its arguments, in evaluation mode."""
        ids, mask = self.pad_prompts(prompts)
        seen_rows = None if seen is None else _compressed(seen)
        first_token, trie = self.config.first_index_token, self._trie_here()
        with evaluating(self):
            return search(self.backbone, ids, mask, trie, first_token, number, seen=seen_rows, candidates=candidates)

    @torch.no_grad()
    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 ln p of the semantic ID of every item, exact, in evaluation mode."""
        ids, mask = self.pad_prompts(prompts)
        with evaluating(self):
            return score_all(self.backbone, ids, mask, self._trie_here(), self.config.first_index_token)

    @torch.no_grad()
    def head_scores(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 ln p of every item by the item head, from the last state of each prompt, in evaluation mode."""
        assert self.item_head is not None
        with evaluating(self):
            return self.item_head(self._last_states(prompts)).log_softmax(-1)

    @property
    def scores_by_vectors(self) -> bool:
        """Return whether there is an item head: its logit of an item is h . r_j, with the item's row r_j."""
        return self.item_head is not None

    @torch.no_grad()
    def query_vectors(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the (B, K) float32 states h of the last tokens of prompts, in evaluation mode, for the item head."""
        with evaluating(self):
            return self._last_states(prompts).float()

    def _last_states(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the (B, K) states of the last token of each prompt."""
        ids, mask = self.pad_prompts(prompts)
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "return_dict": True}
        states: torch.Tensor = self.backbone.base_model(**inputs).last_hidden_state
        return states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]

    def catalogue_scores(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 ln p of all items: by the item head where the configuration says so, else of the semantic IDs."""
        return self.head_scores(prompts) if self.config.scoring == "head" else self.score_prompts(prompts)

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
        num_beams: Beams | None = None,
        scoring: Scoring | None = None,
        template: int = 0,
    ) -> np.ndarray:
        """Rank the unseen items for histories. A search's items are read from the codes that it wrote, not from its tree.

        Args:
            user_indices: (B,) user indices, which only name the rows in errors; None where there are none.
            histories, seen: item indices as compressed rows (`indptr`, `items`).

        Returns:
            (B, k) item indices, best first; `PADDING` where fewer were found, as in all places for an empty history, which has no
            prompt; `NO_ITEM` for codes of no item.
        """
        ranked = np.full((len(histories.indptr) - 1, k), PADDING, dtype=np.int64)
        filled, users, rows = _rows_with_items(user_indices, histories)
        if not len(filled):
            return ranked
        seen_rows = None if seen is None else [seen.items[seen.indptr[row] : seen.indptr[row + 1]] for row in filled]
        prompts = self.build_prompts(users, rows, template)
        if scoring_of(self.config, num_beams, scoring) != "beam":
            ranked[filled] = self.best_items(prompts, seen_rows, k, None, rows, num_beams=num_beams, scoring=scoring)[0]
            return ranked
        codes = self.search_codes(prompts, seen_rows, k, num_beams=num_beams).codes.cpu().numpy()
        items = self.semantic_ids.items_of(codes)
        ranked[filled] = np.where((codes < 0).all(axis=-1), PADDING, np.where(items < 0, NO_ITEM, items))
        return ranked

    def score_histories(self, user_indices: np.ndarray | None, histories: Any) -> np.ndarray:
        """As `RecommenderModel.score_histories`; for an empty history, which has no prompt, the score of all items is 0."""
        scores = np.zeros((len(histories.indptr) - 1, self.num_items), dtype=np.float32)
        filled, users, rows = _rows_with_items(user_indices, histories)
        if len(filled):
            found = self.with_linear_parts(self.catalogue_scores(self.build_prompts(users, rows)), rows)
            scores[filled] = found.cpu().numpy()
        return scores

    def describe_search(self, *, num_beams: Beams | None = None, scoring: Scoring | None = None, template: int = 0) -> str:
        """Return how a search with these settings decodes, for the protocol of an evaluation."""
        parts = 0 if self.linear_parts is None else len(self.linear_parts.parts)
        linear = f", and {parts} linear models" if parts and scoring_of(self.config, num_beams, scoring) != "beam" else ""
        return f"{search_words(self.config, num_beams, scoring)}{linear}, template {template}"

    def read_question(
        self, users: Any = None, histories: Any = None, queries: Any = None, *arguments: Any, **named: Any
    ) -> Question:
        """Check a question; queries are answered by a search, because the item head learns from histories alone.

        Raises:
            QuestionError: as `Question.read`, or queries with `scoring="head"`.
        """
        if queries is not None:
            if named.get("scoring") == "head":
                raise QuestionError("scoring", "head", "'beam' and 'all' for queries", "leave it out")
            if named.get("scoring") is None:
                named["scoring"] = "beam"
        return super().read_question(users, histories, queries, *arguments, **named)

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        """Return (items, K) float32 rows of the item head, or sums of the embeddings of each item's semantic ID tokens."""
        if self.item_head is not None:
            chosen = torch.from_numpy(np.arange(self.num_items)[items]).to(self.execution_device)
            with torch.no_grad():
                return np.asarray(self.item_head.rows_of(chosen).float().cpu())
        tokens = self.tokens_of(items)
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
        item_head: bool = False,
        item_inputs: bool = False,
        embeddings: np.ndarray | None = None,
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
            item_head: add an item head, which `recommend` uses by default.
            item_inputs: add its rows to the semantic IDs that the model reads.
            embeddings: (J, D) of the items' texts, for the item head; None makes one without texts.
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
                item_inputs=item_inputs,
                **head_fields(item_head, embeddings, len(catalogue)),
                **config_arguments,
            )
            model: LCRecForRecommendation = cls._around(backbone, tokenizer, config, dtype)
            if model.item_head is not None:
                size = words.weight[:own_words].detach().float().square().mean().sqrt()
                model.item_head.start(embeddings, float(size))
        model.users = users
        model.set_indexer(indexer)
        model.set_catalogue(with_codes(catalogue, semantic_ids.codes))
        check_tree_attention(model.eval().backbone)
        return model

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
        if (
            Path(pretrained_model_name_or_path, INDEXER_FOLDER).exists()
            and not Path(pretrained_model_name_or_path, file).is_file()
        ):
            raise MissingFileError(f"{pretrained_model_name_or_path} has {INDEXER_FOLDER}, but no {file}; {COPY_AGAIN}")
        if cached_file(pretrained_model_name_or_path, file, **hub, _raise_exceptions_for_missing_entries=False) is not None:
            model.set_indexer(
                load_indexer(pretrained_model_name_or_path, hub, model.config.num_levels, model.config.codebook_size)
            )
        return loaded

    def _save_more(self, folder: Path) -> None:
        if self.indexer is not None:
            self.indexer.save_pretrained(folder / INDEXER_FOLDER)


def _rows_with_items(user_indices: np.ndarray | None, histories: Any) -> tuple[np.ndarray, np.ndarray | None, list[np.ndarray]]:
    """Return the numbers of the histories that are not empty, their user indices, and their items."""
    filled = np.flatnonzero(np.diff(histories.indptr))
    rows = np.split(histories.items, histories.indptr[filled][1:])  # the others have no items
    return filled, None if user_indices is None else user_indices[filled], rows


def _compressed(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as (indptr, values)."""
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)


class LCRecForCausalLM(LCRecForRecommendation, GenerationMixin):
    """The same model for `AutoModelForCausalLM`, `generate` and `pipeline("text-generation")`.

    Nothing constrains what it writes: give `generate` a `TrieLogitsProcessor`, or use `recommend`, for real items only.

    With `item_inputs`, the semantic IDs of a prompt get their items' rows, those that `generate` itself writes do not.

    The tokens of semantic IDs are special tokens, so that a text of a user can never be read as one. Therefore
    `skip_special_tokens=True`, which pipelines set, leaves them out: pass `skip_special_tokens=False`, or decode the token ids.
    """


__all__ = ["INDEXER_FOLDER", "LCRecForCausalLM", "LCRecForRecommendation", "Scoring"]
