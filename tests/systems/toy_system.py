"""A third recommender system, as a user of the package would write one: the mean of a history's item rows scores all items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.configuration_backbone import BackboneConfig
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.language_model import evaluating, new_backbone, pretrained_backbone, published_config
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.core.top_items import top_candidates
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.hub.finishing import save_finished
from modeling_cllm4rec.systems import Recipe, Stage, System, register_system
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.estimates import LargestBatch
from modeling_cllm4rec.training.launch import start_processes
from modeling_cllm4rec.training.run_folder import check_folder
from modeling_cllm4rec.training.stages import Objective, Part, Step, StepOutput
from modeling_cllm4rec.training.trainer import run


class ToyConfig(BackboneConfig):
    model_type = "toy"

    def __init__(self, text_config=None, num_users=0, num_items=0, catalogue_fingerprint=None, **kwargs):
        self.num_users, self.num_items, self.catalogue_fingerprint = num_users, num_items, catalogue_fingerprint
        self.recommendation_prompts = []
        kwargs["auto_map"] = {"AutoConfig": "toy_system.ToyConfig", "AutoModel": "toy_system.ToyForRecommendation"}
        super().__init__(text_config, **kwargs)


class ToyForRecommendation(RecommenderModel):
    config_class = ToyConfig
    system = "toy"
    default_batch_size = 16
    score_name = "similarity"
    paper_metrics = ("recall@5", "ndcg@5")

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.backbone = new_backbone(config.text_config)
        self.items = torch.nn.Embedding(config.num_items, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if module is getattr(self, "items", None):
            torch.nn.init.normal_(module.weight)

    @classmethod
    def from_backbone(cls, name: str, catalogue: Catalogue, users: KnownUsers, seed: int) -> ToyForRecommendation:
        backbone, tokenizer = pretrained_backbone(name, torch.float32)
        config = ToyConfig(published_config(backbone), len(users), len(catalogue), catalogue.ids.fingerprint)
        torch.manual_seed(seed)
        model = cls._around(backbone, tokenizer, config, torch.float32)
        model.catalogue, model.users = catalogue, users
        return model

    @property
    def id_parameters(self) -> list[torch.Tensor]:
        return [self.items.weight]

    def build_prompts(self, user_indices: np.ndarray | None, histories: Iterable[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(history, dtype=np.int64) for history in histories]

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, objective=None, **kwargs: Any) -> Any:
        if objective is not None:
            return objective(self, ids=ids, mask=mask, **kwargs)
        state = (self.items(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return state @ self.items.weight.T

    def score_prompts(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        with evaluating(self):
            return self(*self.pad_prompts(prompts))

    def best_items(self, prompts, seen, k, candidates, histories=None, **search: Any) -> tuple[np.ndarray, np.ndarray]:
        if search:
            raise InputError(f"unknown settings {sorted(search)}")
        return top_candidates(self.with_linear_parts(self.score_prompts(prompts), histories), seen, k, candidates)

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        return self.items.weight.detach()[torch.from_numpy(items)].numpy()

    def _take_item_rows(self, rows: np.ndarray) -> None:
        raise NotImplementedError


@dataclass
class ToyArguments(TrainingArguments):
    backbone: str = field(default="", metadata={"help": "name or path of a causal language model"})


class ToyStage:
    name = "toy-train"
    scores_at_once = 16

    def __init__(self, model: ToyForRecommendation, data: RecommendationData, arguments: ToyArguments) -> None:
        self.model, self.data, self.arguments = model, data, arguments
        histories = data.histories("train")
        self.rows = np.split(histories.items.astype(np.int64), histories.indptr[1:-1])

    @property
    def num_epochs(self) -> int:
        return self.arguments.num_train_epochs

    def steps(self, epoch: int) -> list[Step]:
        users = np.array([user for user, row in enumerate(self.rows) if len(row) > 1])
        return [Step("toy", part) for part in np.array_split(users, 3)]

    def inputs(self, part: Part) -> dict[str, torch.Tensor]:
        rows = [self.rows[user] for user in part.documents]
        ids, mask = self.model.pad_prompts([row[:-1] for row in rows])
        return {"ids": ids, "mask": mask, "next_items": torch.tensor([row[-1] for row in rows])}

    def count_items(self, part: Part, inputs: dict[str, torch.Tensor]) -> int:
        return len(part.documents)

    def objective(self, part: Part) -> Objective:
        return next_item_nll

    def validate(self, epoch: int) -> dict[str, float]:
        report = evaluate(self.model, self.data, "validation", metrics=["ndcg@5"], progress=False, n_resamples=0)
        return {"validation/ndcg@5": report.metrics["ndcg@5"], "selection": report.metrics["ndcg@5"]}

    def largest_batches(self) -> dict[str, LargestBatch]:
        return {"toy": LargestBatch(16, 16)}


def next_item_nll(model, ids, mask, next_items, num_items_in_batch) -> StepOutput:
    nll = F.cross_entropy(model(ids, mask), next_items, reduction="sum")
    return StepOutput(nll / num_items_in_batch, nll.detach(), torch.tensor(len(ids)))


def train(arguments: ToyArguments):
    processes, data = start_processes(arguments), RecommendationData.load(arguments.data)
    check_folder(ToyStage.name, arguments, data)
    histories = data.histories("train")
    users = KnownUsers(data.users["user_id"], histories.indptr, histories.items)
    model = ToyForRecommendation.from_backbone(arguments.backbone, Catalogue(data.items), users, arguments.seed)
    model.backbone.requires_grad_(False)
    stage = ToyStage(model, data, arguments)
    progress = run(stage, processes)
    _, tokenizer = pretrained_backbone(arguments.backbone, torch.float32)
    save_finished(stage, tokenizer, progress, processes, None, card_data=data)
    return model, progress


register_system(
    System(
        name="toy",
        title="Toy",
        config="toy_system:ToyConfig",
        model="toy_system:ToyForRecommendation",
        stages=(
            Stage(
                name="toy-train",
                section="train",
                arguments="toy_system:ToyArguments",
                run="toy_system:train",
                summary="Toy: data folder -> recommender",
                description="Train the toy.",
                example="--data data/mine --backbone gpt2 --output runs/toy",
            ),
        ),
        recipes={"toy": Recipe("Toy", "mean of item rows")},
        card_tag="toy",
        card_about="A toy recommender.",
        card_use="for the tests",
    )
)
