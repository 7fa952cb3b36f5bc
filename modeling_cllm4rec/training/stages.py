"""What a training stage gives the trainer: its plan of steps, the inputs of their parts, the objective and the validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers.modeling_outputs import ModelOutput

from modeling_cllm4rec.core.processes import process_count
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.estimates import LargestBatch


class Step(NamedTuple):
    """One optimizer step: a kind of document, and the numbers of its documents over all processes."""

    kind: str
    documents: np.ndarray


@dataclass(frozen=True)
class Part:
    """The part of a step that one process reads in one accumulation step.

    Attributes:
        kind: of the step.
        documents: of this part.
        step_documents: number of documents of the whole step.
        epoch: from 0.
        number: of the optimizer step, from 0 over all epochs.
        idle: whether the step has fewer documents than parts and this part computes one with weight 0: each process must have a
            gradient for the same parameters, or their sum would wait forever.
    """

    kind: str
    documents: np.ndarray
    step_documents: int
    epoch: int
    number: int
    idle: bool = False


@dataclass
class StepOutput(ModelOutput):
    """What an objective computes of one part of a step.

    Attributes:
        loss: () the part's share of the loss of the step; the shares of all parts add up to it.
        nll: () sum over the part's main tokens, in nats, for the log.
        tokens: () number of those tokens.
    """

    loss: torch.Tensor | None = None
    nll: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


Objective = Callable[..., StepOutput]
"""A function of the model, the inputs of a part, and `num_items_in_batch`: the sum of `Stage.count_items` over all parts."""


class Stage(Protocol):
    """The interface of pretraining, finetuning and alignment to the trainer."""

    name: str
    data: RecommendationData

    @property
    def model(self) -> RecommenderModel:
        """Return the model that is trained."""
        ...

    @property
    def arguments(self) -> TrainingArguments:
        """Return the arguments of the stage."""
        ...

    @property
    def num_epochs(self) -> int:
        """Return the number of epochs, warm-up included."""
        ...

    def steps(self, epoch: int) -> list[Step]:
        """Return the optimizer steps of an epoch, a function of the seed alone."""
        ...

    def inputs(self, part: Part) -> dict[str, Any]:
        """Return the tensors of a part, on the CPU; a worker process may call this."""
        ...

    def objective(self, part: Part) -> Objective:
        """Return what a part of a step minimizes; it is called within the model's `forward`."""
        ...

    def count_items(self, part: Part, inputs: dict[str, Any]) -> int:
        """Return the number of documents or tokens of a part that its loss is averaged over."""
        ...

    def validate(self, epoch: int) -> dict[str, float]:
        """Return metrics after an epoch; `selection` (higher is better), if given, selects the epoch that is kept."""
        ...

    @property
    def scores_at_once(self) -> int:
        """Return the number of users whose scores of all items a validation holds in memory together."""
        ...

    def largest_batches(self) -> dict[str, LargestBatch]:
        """Return, for each kind of step, the batch that needs the most memory."""
        ...


def item_seed(seed: int, number: int) -> int:
    """Return the seed of the sampled items of optimizer step `number`.

    It is the same in all parts of a step, or the sum of the parts would not be the loss of the step.
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def item_generator(seed: int) -> torch.Generator:
    """Return the random numbers that draw sampled items."""
    return torch.Generator().manual_seed(seed)


def step_batch_size(arguments: TrainingArguments) -> int:
    """Return the number of documents of one optimizer step, over all processes and accumulation steps."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * process_count()


def part_loss(stage: Stage, step: Step, documents: np.ndarray | None = None, epoch: int = 0, number: int = 0) -> StepOutput:
    """Compute a part of a step outside the trainer, for measurements: its share of the loss, and its nll.

    Args:
        documents: of the part; None computes the whole step.
        epoch, number: of the step, which random numbers depend on.

    Example:
        >>> part_loss(stage, stage.steps(0)[0]).loss.backward()  # doctest: +SKIP
    """
    mine = step.documents if documents is None else documents
    counts = []
    for read in (step.documents, mine):
        part = Part(step.kind, read, len(step.documents), epoch, number)
        inputs = stage.inputs(part)
        counts.append(stage.count_items(part, inputs))
    tensors = {name: value.to(stage.model.device) for name, value in inputs.items()}
    output: StepOutput = stage.model(**tensors, objective=stage.objective(part), num_items_in_batch=counts[0])
    return output
