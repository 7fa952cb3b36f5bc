"""The plan of steps as PyTorch reads it: a sampler of the parts of one process, and a data set of their inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from modeling_cllm4rec.corpora.batches import micro_batch
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.stages import Part, Stage


class Plan:
    """The steps of a run, planned one epoch at a time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.steps_in_epoch: list[int] = []
        self.documents: Counter[str] = Counter()
        for epoch in range(stage.num_epochs):
            steps = stage.steps(epoch)
            self.steps_in_epoch.append(len(steps))
            for step in steps:
                self.documents[step.kind] += len(step.documents)
        self.total = sum(self.steps_in_epoch)

    def documents_until(self, epoch: int, step_in_epoch: int) -> Counter[str]:
        """Return the documents of each kind before a step of an epoch."""
        done: Counter[str] = Counter()
        if not epoch and not step_in_epoch:
            return done
        for earlier in range(min(epoch + 1, self.stage.num_epochs)):
            steps = self.stage.steps(earlier)
            for step in steps[:step_in_epoch] if earlier == epoch else steps:
                done[step.kind] += len(step.documents)
        return done


class Parts(Dataset):
    """The inputs of the parts of steps, by part."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, part: Part) -> dict[str, Any]:
        inputs = self.stage.inputs(part)
        return {"part": part, "items": 0 if part.idle else self.stage.count_items(part, inputs), **inputs}


class PartSampler(Sampler):
    """The parts of the steps that one process reads, from the step on that a run has reached.

    Args:
        plan: of the whole run.
        progress: of the run; it is read when the iteration begins.
        process, processes: number of this process, and of all.
    """

    def __init__(self, plan: Plan, progress: Progress, process: int, processes: int) -> None:
        self.plan, self.progress, self.process, self.processes = plan, progress, process, processes

    def __len__(self) -> int:
        return self.plan.total * self.plan.stage.arguments.gradient_accumulation_steps

    def __iter__(self) -> Iterator[Part]:
        stage, number, first_epoch, done = self.plan.stage, self.progress.step, self.progress.epoch, self.progress.step_in_epoch
        accumulations = stage.arguments.gradient_accumulation_steps
        for epoch in range(first_epoch, stage.num_epochs):
            for step in stage.steps(epoch)[done if epoch == first_epoch else 0 :]:
                for accumulation in range(accumulations):
                    place = accumulation * self.processes + self.process
                    documents = micro_batch(step.documents, accumulations * self.processes, place)
                    idle = not len(documents)
                    mine = step.documents[:1] if idle else documents
                    yield Part(step.kind, mine, len(step.documents), epoch, number, idle)
                number += 1


def as_it_is(inputs: Any) -> Any:
    """Return the inputs of a part, which are tensors already. A function of a module, so that worker processes can name it."""
    return inputs


__all__ = ["PartSampler", "Parts", "Plan", "as_it_is"]
