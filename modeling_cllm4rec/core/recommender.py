"""The base class of every recommender: one question in external ids, one saved folder, one language model inside.

This file is self-contained because it is copied into every saved folder.
"""

from __future__ import annotations

import shutil
import uuid
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import resolve_revision

from .catalogue import CATALOGUE_FILE, Catalogue, IdMap, KnownUsers, OnUnknown, Recommendations, SimilarItems
from .errors import FileWriteError, InputError
from .folder_checks import check_finite, check_weights
from .language_model import execution_device, greedy_generation, pad_prompts, word_head
from .linear_parts import LinearParts
from .parallel_plans import check_gathered, check_heads, check_tensor_plan, layer_plan
from .questions import ItemQuestion, Question, QuestionError, check_whole_number
from .saved_folder import (
    HUB_ARGUMENTS,
    UPLOAD_ARGUMENTS,
    check_parts,
    check_tables,
    check_target,
    load_parts,
    replace_files,
    save_parts,
    upload,
)
from .similar_items import most_similar

SAVING = ".saving-"
"""Beginning of the name of a folder with files that are being written."""


# Not `class RecommenderModel(ABC, PreTrainedModel)`: libraries that swap a module's class (torch's fully_shard, sharded loading
# in transformers) then fail with "object layout differs". A metaclass alone changes no layout.
class RecommenderModel(PreTrainedModel, metaclass=ABCMeta):
    """A recommender over a causal language model, with its catalogue and its users.

    A subclass turns histories into prompts (`build_prompts`) and prompts into the best items (`best_items`). The class
    attributes declare what it can do; the rest of the package reads them and knows no system by name.

    Attributes:
        system: name of the system in `systems.SYSTEMS`.
        reads_users: whether a known user has tokens, so that the history may be empty.
        scores_catalogue: whether one pass scores all items. Otherwise the model searches: it has `describe_search`, and
            `best_items` takes the settings in `search_settings`.
        search_settings: names of the settings of its search.
        default_batch_size: users in one pass.
        score_name: meaning of a recommendation's score, as in the header of a table.
        paper_metrics: metrics that the system's paper reports.
        saved_subfolders: names of the folders that it saves within its own.
        catalogue: the items that the model recommends, None where they have no external ids.
        users: the known users, None where they have no external ids.
        linear_parts: linear models whose scores are added when the whole catalogue is scored for a history; None for none.
        card: text of the model card, None before there is one.
        training_curves, comparison: pictures (PNG) that the card shows, None where none were drawn.
        data_card: text of the card of the data folder, None where it had none.
        backbone: the causal language model inside.
    """

    system: ClassVar[str]
    reads_users: ClassVar[bool] = False
    scores_catalogue: ClassVar[bool] = True
    search_settings: ClassVar[tuple[str, ...]] = ()
    default_batch_size: ClassVar[int] = 256
    score_name: ClassVar[str] = "score"
    paper_metrics: ClassVar[tuple[str, ...]] = ("recall@20", "recall@40", "ndcg@100")
    saved_subfolders: ClassVar[tuple[str, ...]] = ()

    # Not "model": Llama's inner `model.` would be taken for ours, and the backbone would reload at random.
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_fsdp_managed_module = False  # transformers sets it when it shards a model

    backbone: Any
    catalogue: Catalogue | None = None
    users: KnownUsers | None = None
    linear_parts: LinearParts | None = None
    card: str | None = None
    training_curves: bytes | None = None
    comparison: bytes | None = None
    data_card: str | None = None

    @abstractmethod
    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the token ids of the prompt for each history (item indices, oldest first)."""

    def build_query_prompts(
        self, queries: Sequence[str], histories: Sequence[np.ndarray] | None = None, template: int = 0
    ) -> list[np.ndarray]:
        """Return the token ids of the prompt for each query, of a model that reads queries.

        Args:
            histories: item indices of each user, oldest first; None for queries alone.
            template: number of the template.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no queries")

    @abstractmethod
    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 scores of all items, on the model's device, in evaluation mode."""

    @abstractmethod
    def best_items(
        self,
        prompts: Sequence[np.ndarray],
        seen: Sequence[np.ndarray] | None,
        k: int,
        candidates: np.ndarray | None,
        histories: Sequence[np.ndarray] | None = None,
        **search: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best items of each prompt, in evaluation mode.

        Args:
            prompts: token ids, one prompt a user.
            seen: item indices of each user that may not be recommended; None forbids none.
            candidates: (candidates,) sorted item indices to choose from; None means the whole catalogue.
            histories: item indices of each user, oldest first, which linear parts read; None for prompts without one.
            search: settings of the model's own search.

        Returns:
            (B, k) item indices, best first, -1 where a user has fewer items left, and their (B, k) float32 scores.
        """

    @property
    @abstractmethod
    def id_parameters(self) -> list[torch.Tensor]:
        """The matrices that hold rows of users and items."""

    @property
    def id_parameter_groups(self) -> list[list[torch.Tensor]]:
        """The matrices of `id_parameters` by the training step that changes them; one group where every step changes all."""
        return [self.id_parameters]

    @abstractmethod
    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        """Return (items, K) float32 vectors of item indices: the model's own representation of them."""

    @property
    def scores_by_vectors(self) -> bool:
        """Return whether an item's score is, up to a constant, the dot product of its vector and the prompt's `query_vectors`."""
        return False

    def query_vectors(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the (B, K) float32 vectors of prompts, in evaluation mode, of a model that scores by vectors."""
        raise NotImplementedError(f"{type(self).__name__} does not score by vectors")

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return int(self.config.num_items)

    @property
    def reads_queries(self) -> bool:
        """Return whether the model answers queries in words by `search`."""
        return False

    def warm_up(self) -> None:
        """Build what the first request would build; nothing by default."""

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that a tokenizer gives users and items the tokens that this model has for them; nothing by default.

        Raises:
            InputError: it is the tokenizer of another model.
        """

    def check_ready(self) -> None:
        """Check that the model can recommend.

        Raises:
            InputError: it has no prompt for recommending, or no catalogue.
        """
        if getattr(self.config, "recommendation_prompts", None) is None:
            raise InputError(
                f"{self.name_or_path} has no recommendation prompt and cannot recommend; name a finetuned or aligned model"
            )
        if self.catalogue is None:
            raise InputError(f"{self.name_or_path} has no {CATALOGUE_FILE} and cannot name items; save it with its catalogue")

    # The language model inside, as transformers asks for it.

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings (N, K) of the language model."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the language model's output layer."""
        layer: nn.Module | None = self.backbone.get_output_embeddings()
        return layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's output layer."""
        self.backbone.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """Return the language model without its output layer."""
        body: nn.Module = self.backbone.base_model
        return body

    @property
    def word_head(self) -> nn.Module:
        """The layer from (..., K) states to (..., N) logits over the language model's tokens: f_c in CLLM4Rec."""
        return word_head(self.backbone)

    @classmethod
    def _around(
        cls, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: Any, dtype: torch.dtype
    ) -> Any:
        """Return a fresh model with the weights of a pretrained backbone. Its other rows are random: seed them outside."""
        model = cls._from_config(config, dtype=dtype)
        model.backbone.load_state_dict(backbone.state_dict())
        model.generation_config = greedy_generation(backbone.generation_config, tokenizer)
        return model

    # The saved folder.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does, with the folder's catalogue, users and card.

        Raises:
            InputError: weights that are cut off, of another shape, no numbers or no safetensors, or a catalogue of another
                checkpoint. Nothing is left at random silently. Sizes are checked before anything is read.
            MissingFileError: there are no weights, or no linear models of a hybrid.
        """
        where = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
        revision = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **where)
        if revision is not None:  # one commit, from which all files come
            kwargs["revision"] = revision
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is False:
            raise InputError("use_safetensors is False; only safetensors are read: other weights can run code when they are read")
        kwargs["use_safetensors"] = True
        if not {"state_dict", "gguf_file"} & kwargs.keys():
            config = kwargs.get("config")
            if not isinstance(config, PreTrainedConfig):
                config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **hub)  # type: ignore[union-attr]
            check_weights(pretrained_model_name_or_path, config, cls, hub, kwargs.get("variant"))
            check_tables(config, pretrained_model_name_or_path, hub)
        kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by name
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs)
        except (SafetensorError, EOFError) as error:
            raise InputError(
                f"the weights in {pretrained_model_name_or_path} cannot be read ({error}): the file is cut off or no "
                "safetensors file; copy or download the folder again"
            ) from error
        model, info = loaded
        broken = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        if broken:
            raise InputError(
                f"{pretrained_model_name_or_path} lacks weights of this model or has them in another shape: {broken[:5]} "
                f"({len(broken)} in all); it is no complete {cls.__name__} checkpoint"
            )
        check_finite(pretrained_model_name_or_path, model.state_dict().items())
        load_parts(model, pretrained_model_name_or_path, hub)
        return (model, info) if wants_info else model

    def init_parallel_plans(self) -> None:
        """Collect the backbone's plans of tensor parallelism and FSDP2, for `distributed_config` of `from_pretrained`."""
        super().init_parallel_plans()
        self._fsdp_plan = layer_plan(self)

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        """Distribute a model over processes as transformers does, before its weights are read.

        Raises:
            InputError: tensor parallelism cannot share out the backbone's attention heads, or has no plan for it.
        """
        if mesh_manager is not None:
            check_tensor_plan(model, distributed_config)
            check_heads(model.config.text_config, distributed_config.tp_size)
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)

    def check_catalogue(self) -> None:
        """Check that catalogue and users are those of the weights.

        Raises:
            InputError: they belong to another checkpoint.
        """
        check_parts(self.config, self.catalogue, self.users)
        if self.linear_parts is not None:
            self.linear_parts.check(self.config)

    def set_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the catalogue: item_index j is row j of the new one; rows behind those of the linear parts are new items."""
        if self.linear_parts is not None and len(catalogue) > (known := self.linear_parts.num_items):
            new = len(catalogue) - known
            self.linear_parts = self.linear_parts.of_items(np.arange(known), new, catalogue.ids.fingerprint)
        self.catalogue = catalogue
        self.config.num_items = len(catalogue)
        self.config.catalogue_fingerprint = catalogue.ids.fingerprint

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, *, include_histories: bool | None = None, **kwargs: Any
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with catalogue, users, card, code and its requirements.

        All files are written first and then renamed, so a lack of room leaves the folder as it was.

        Args:
            include_histories: False excludes the users' histories, for privacy; they are then given at the call. By default the
                folder holds them, and what `push_to_hub=True` uploads does not.
            kwargs: as there. `push_to_hub=True` uploads as `push_to_hub` does, whatever else is in the folder.

        Raises:
            ExistingFileError: the folder holds a catalogue or users of another model, and this one has none.
            FileWriteError: there is no room, or no permission.
        """
        self.check_catalogue()
        self.config.linear_parts = [] if self.linear_parts is None else [part.name for part in self.linear_parts.parts]
        check_target(self, Path(save_directory))
        push = kwargs.pop("push_to_hub", False)
        where = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **kwargs)
            return
        target = Path(save_directory)
        written = target / f"{SAVING}{uuid.uuid4().hex}"  # within the folder: a rename needs one file system
        try:
            for leftover in target.glob(f"{SAVING}*"):
                shutil.rmtree(leftover)
            super().save_pretrained(written, is_main_process=True, **kwargs)
            self._save_more(written)
            save_parts(self, written, include_histories is not False)
            replace_files(written, target)
        except (SafetensorError, OSError) as error:
            raise FileWriteError(
                f"{target} cannot be written ({error}); what was there before is unchanged: make room, or choose another folder"
            ) from error
        finally:
            shutil.rmtree(written, ignore_errors=True)
        if push:
            shard_size = {name: kwargs[name] for name in ("max_shard_size",) if name in kwargs}
            where = {"repo_id": target.name, **where, "include_histories": include_histories is True, **shard_size}
            self.push_to_hub(token=kwargs.get("token"), **where)

    def _save_more(self, folder: Path) -> None:
        """Write what only this system has; nothing by default."""

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = True,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        include_histories: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes, the generated card included, as one commit.

        `cllm4rec push` uploads a finished run in the same way, with its evaluations and the card of its data.

        Args:
            repo_id: `name` or `organization/name`; made if there is no such repository.
            tokenizer: uploaded with the model; None leaves it to its own `push_to_hub`.
            private: visibility of a repository that is made; None means the owner's default. One that is there stays as it is.
            revision: branch to commit to; made from the main one if there is no such branch.
            create_pr: propose the commit as a pull request.
            include_histories: whether the users' histories are uploaded. Without them, they are given at the call.

        Returns:
            The address of the commit.

        Raises:
            InputError: `repo_id` is no name, or names a public repository and histories are included without `private=False`.
            RunError: the Hub refuses the upload or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, include_histories=include_histories, max_shard_size=max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            return upload(
                Path(folder),
                repo_id,
                include_histories=include_histories,
                token=token,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: every folder is saved with its code and the whole `auto_map`."""

    # Scoring and recommending.

    def score_histories(self, user_indices: np.ndarray | None, histories: Any) -> np.ndarray:
        """Score all items for histories, in evaluation mode.

        Args:
            user_indices: (B,) user indices, -1 for an unknown user; None for unknown users only.
            histories: item indices as compressed rows (`indptr`, `items`), oldest first.

        Returns:
            (B, J) float32 scores.
        """
        rows = np.split(histories.items, histories.indptr[1:-1])
        return self.with_linear_parts(self.catalogue_scores(self.build_prompts(user_indices, rows)), rows).cpu().numpy()

    def catalogue_scores(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (B, J) float32 scores of all items for prompts, as `recommend` uses them where it scores the whole catalogue."""
        return self.score_prompts(prompts)

    def with_linear_parts(self, scores: torch.Tensor, histories: Sequence[np.ndarray] | None) -> torch.Tensor:
        """Return (B, J) scores with those of the linear parts added, or as they are where there are no parts or no histories."""
        if self.linear_parts is None or histories is None:
            return scores
        return self.linear_parts.added(scores, histories)

    def adds_linear_parts(self, question: Question) -> bool:
        """Return whether the scores of the answers to a question are those of a hybrid."""
        return self.linear_parts is not None and question.queries is None

    def rank_histories(self, user_indices: np.ndarray | None, histories: Any, seen: Any | None, k: int) -> np.ndarray:
        """Return the (B, k) best unseen items for histories, best first, -1 where there are fewer, in evaluation mode.

        Args:
            user_indices: (B,) user indices, -1 for an unknown user; None for unknown users only.
            histories, seen: item indices as compressed rows (`indptr`, `items`); None forbids no item.
        """
        rows = np.split(histories.items, histories.indptr[1:-1])
        forbidden = None if seen is None else np.split(seen.items, seen.indptr[1:-1])
        return self.best_items(self.build_prompts(user_indices, rows), forbidden, k, None, histories=rows)[0]

    def pad_prompts(self, prompts: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, T) token ids of prompts, padded on the right, and their attention mask, on the model's device."""
        return pad_prompts(prompts, self.execution_device)

    @property
    def execution_device(self) -> torch.device:
        """The device on which the model computes; that of `device` unless weights are offloaded."""
        return execution_device(self)

    def remove_items(self, item_ids: Sequence[Any]) -> None:
        """Remove items from the catalogue: they are never recommended again, and leave the stored histories.

        An id that was removed is unknown afterwards; it may be added again.

        Raises:
            InputError: unknown items, one named twice, or all of them.

        Example:
            >>> model.remove_items(["B1"])  # doctest: +SKIP
        """
        catalogue = self.require_catalogue()
        removed = catalogue.ids.indices_of(IdMap(item_ids, "item_ids").array.to_pylist())
        keep = np.setdiff1d(np.arange(len(catalogue)), removed)
        if not len(keep):
            raise InputError("remove_items: nothing would be left to recommend; keep at least one item")
        self.take_items(keep)

    def take_items(self, rows: np.ndarray) -> None:
        """Keep these items, in this order: (kept,) item indices, each once. Stored histories are renumbered."""
        catalogue = self.require_catalogue()
        if self.users is not None:
            place = np.full(len(catalogue), -1, dtype=np.int64)
            place[rows] = np.arange(len(rows))
            self.users = self.users.renumbered(place)
        if self.linear_parts is not None:
            remaining = Catalogue(catalogue.table.select(["item_id"]).take(pa.array(rows)))
            self.linear_parts = self.linear_parts.of_items(rows, 0, remaining.ids.fingerprint)
        self._take_item_rows(rows)

    @abstractmethod
    def _take_item_rows(self, rows: np.ndarray) -> None:
        """Keep these items in the weights and in the catalogue: (kept,) item indices."""

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int | None = None,
        **search: Any,
    ) -> Recommendations:
        """Return the k best items for users, for histories, or for users with given histories.

        Args:
            users: external user ids; without `histories`, their stored histories are read.
            histories: external item ids, oldest first, one list per user. They replace the stored histories of `users`.
                Without `users` they are histories of unknown users. Of more items than the context holds, the last are read.
            k: number of items, at most the number of candidates. A user with fewer unseen candidates gets fewer rows.
            exclude_seen: do not recommend items of the history.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` names unknown ids; `"skip"` leaves unknown users, items and candidates out, and users with
                nothing left that the model can read (an unknown user, or LC-Rec: an empty history).
            batch_size: users scored in one pass.
            search: settings of the model's own search, where it has one (LC-Rec: `num_beams`, `scoring`).

        Returns:
            `Recommendations` with columns user, item, rank, score. A user who has seen all candidates gets no rows, and a
            warning names the user.

        Raises:
            InputError: unknown ids, an empty history of a user without an ID token, k out of range; before anything is scored.
                A `QuestionError` has the argument, the value and the valid values as attributes.
        """
        tables = list(self.iter_recommendations(users, histories, k, exclude_seen, candidates, on_unknown, batch_size, **search))
        return Recommendations(pa.concat_tables(tables))

    def iter_recommendations(
        self,
        users: Sequence[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int | None = None,
        progress: bool = False,
        **search: Any,
    ) -> Iterator[pa.Table]:
        """Return recommendations as in `recommend`, one table per batch, in the given order, in constant memory."""
        check_gathered(self)
        question = self.read_question(users, histories, None, k, exclude_seen, candidates, on_unknown, **search)
        return self.iter_answers(question, batch_size, progress)

    def read_question(self, *arguments: Any, **named: Any) -> Question:
        """Check a question of this model; arguments and errors as in `Question.read`."""
        return Question.read(self, *arguments, **named)

    def check_search(self, k: int, **search: Any) -> None:
        """Check the settings of a search for k items.

        Raises:
            QuestionError: a setting that this model does not have, or one with a wrong value.
        """
        for name, value in search.items():
            allowed = " and ".join(self.search_settings) or "no settings, because this model scores all items at once"
            raise QuestionError(name, value, allowed, "leave it out")

    def iter_answers(
        self, question: Question, batch_size: int | None = None, progress: bool = False, template: int = 0
    ) -> Iterator[pa.Table]:
        """Return the answers of a checked question, one table per batch, in its order, in constant memory.

        Args:
            template: number of the template of queries.
        """
        size = self.default_batch_size if batch_size is None else batch_size
        check_whole_number("batch_size", size)
        return self._answer_batches(question, size, progress, template)

    def _answer_batches(self, question: Question, batch_size: int, progress: bool, template: int) -> Iterator[pa.Table]:
        with tqdm(total=len(question), desc="recommending", unit="user", disable=not progress) as bar:
            for start in range(0, max(len(question), 1), batch_size):
                rows = range(start, min(start + batch_size, len(question)))
                read = [question.history(row) for row in rows]
                indices = None if question.user_indices is None else question.user_indices[start : start + batch_size]
                prompts: Sequence[np.ndarray] = []
                if read and question.queries is None:
                    prompts = self.build_prompts(indices, read)
                elif read:
                    alone = question.histories is None and indices is None
                    queries = question.queries[start : start + batch_size]  # type: ignore[index]
                    prompts = self.build_query_prompts(queries, None if alone else read, template)
                yield self._answer(question, start, prompts, read)
                bar.update(len(rows))

    def _answer(self, question: Question, start: int, prompts: Sequence[np.ndarray], read: Sequence[np.ndarray]) -> pa.Table:
        """Return the answers of the users from `start` on, whose prompts and histories these are."""
        k, names = question.k, question.names.slice(start, len(prompts))
        best, scores = np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        if len(prompts):
            seen = read if question.exclude_seen else None
            histories = read if question.queries is None else None
            best, scores = self.best_items(prompts, seen, k, question.candidates, histories=histories, **question.search)
        without = names.filter(pa.array((best < 0).all(axis=1)))
        if len(without):
            choices = self.num_items if question.candidates is None else len(question.candidates)
            warnings.warn(
                f"no item is left to recommend to {len(without)} of the users, who have seen all {choices} to choose from: "
                f"{without[:5].to_pylist()!r}",
                stacklevel=4,
            )
        return self._as_table(names, best, scores)

    def similar_items(
        self,
        items: Sequence[Any],
        k: int = 10,
        candidates: Sequence[Any] | None = None,
        on_unknown: OnUnknown = "raise",
        batch_size: int | None = None,
    ) -> SimilarItems:
        """Return the k items that are most similar to each item, by the cosine of the model's vectors (`item_vectors`).

        Args:
            items: external item ids.
            k: number of similar items, at most the number of candidates. The item itself is left out.
            candidates: external item ids to choose from; None means the whole catalogue.
            on_unknown: `"raise"` names unknown ids; `"skip"` leaves unknown items and candidates out.
            batch_size: items in one pass over the catalogue.

        Returns:
            `SimilarItems` with columns target_item, item, rank, score.

        Raises:
            InputError: unknown ids, k out of range. A `QuestionError` has the argument, the value and the valid values.

        Example:
            >>> model.similar_items(["B1"], k=5).items("B1")  # doctest: +SKIP
        """
        question = ItemQuestion.read(self, items, k, candidates, on_unknown)
        size = self.default_batch_size if batch_size is None else batch_size
        check_whole_number("batch_size", size)
        ids, tables = self.require_catalogue().ids, []
        for start in range(0, max(len(question), 1), size):
            part = question.items[start : start + size]
            best, scores = np.zeros((0, question.k), np.int64), np.zeros((0, question.k), np.float32)
            if len(part):
                best, scores = most_similar(self, part, question.k, question.candidates)
            tables.append(self._as_table(ids.array.take(pa.array(part)), best, scores, SimilarItems.asked))
        return SimilarItems(pa.concat_tables(tables))

    def readable(self, user_indices: np.ndarray, on_unknown: OnUnknown = "raise") -> np.ndarray:
        """Return which known users can get recommendations from their stored histories.

        Args:
            user_indices: (users,) user indices.

        Returns:
            (users,) bool; all True for a model whose users have tokens, or with `on_unknown="raise"`.

        Raises:
            QuestionError: a user with an empty history, with `on_unknown="raise"` (the first five are named).
        """
        known = self.users
        if self.reads_users or known is None:
            return np.ones(len(user_indices), dtype=bool)
        found = known.history_lengths(user_indices) > 0
        if on_unknown == "raise" and not found.all():
            raise QuestionError(
                "users",
                known.ids.ids_of(user_indices[~found][:5]),
                "users whose history has at least one known item",
                f"the histories of {int((~found).sum())} users are empty and this model has no tokens for users: "
                "give them histories",
                skippable=True,
            )
        return np.asarray(found)

    def require_catalogue(self) -> Catalogue:
        """Return the catalogue.

        Raises:
            InputError: the model has none.
        """
        if self.catalogue is None:
            raise InputError(
                f"this model has no catalogue ({CATALOGUE_FILE}), so it cannot name items; "
                "build it with from_backbone(catalogue=...) or set model.catalogue"
            )
        return self.catalogue

    def _as_table(self, labels: pa.Array, best: np.ndarray, scores: np.ndarray, asked: str = Recommendations.asked) -> pa.Table:
        row, rank = np.nonzero(best >= 0)
        return pa.table(
            {
                asked: labels.take(pa.array(row)),
                "item": self.require_catalogue().ids.array.take(pa.array(best[row, rank])),
                "rank": pa.array(rank + 1, pa.int32()),
                "score": pa.array(scores[row, rank], pa.float32()),
            }
        )


__all__ = ["RecommenderModel"]
