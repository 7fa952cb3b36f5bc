"""The arguments of `transformers.Trainer` for a stage, and the names by which trackers know its run."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments as TrainerArguments

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.argument_names import PASSED_ON
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.run_folder import begun_at
from modeling_cllm4rec.training.stages import Stage
from modeling_cllm4rec.training.step_plan import Plan

SHARED_NAMES = (
    *("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "learning_rate", "weight_decay"),
    *("optim", "bf16", "save_steps", "report_to"),
)
"""Arguments of a stage that `Trainer` reads under the same names."""


class StageTrainerArguments(TrainerArguments):
    """Arguments of `transformers.Trainer` that trackers receive together with those of the stage.

    Attributes:
        of_stage: arguments of the stage. `Trainer` is not given all of them, such as `num_train_epochs` or `item_loss`.
    """

    def __post_init__(self) -> None:
        self.of_stage: dict[str, Any] = {}
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return what a tracker records as the configuration of a run."""
        return {**super().to_dict(), **self.of_stage}


def run_name(stage: Stage) -> str:
    """Return the name of a run for trackers: the end of the output folder's path, the stage, and when it was begun.

    A resumed run has the name of the run that it continues. Another run into the same folder has another name, because Trackio
    writes runs of one name into one run.
    """
    folder = stage.arguments.run_folder
    return "-".join(filter(None, ("/".join(folder.parts[-2:]), stage.name, begun_at(stage.name, stage.arguments))))


def wandb_without_a_run(arguments: TrainingArguments) -> Any:
    """Return the module `wandb` if a stage reports to it and begins its own run there."""
    if arguments.report_to != "wandb":
        return None
    import wandb

    return wandb if wandb.run is None else None


def trainer_arguments(stage: Stage, plan: Plan) -> TrainerArguments:
    """Return the arguments of `transformers.Trainer` for a stage.

    The whole run is one epoch for `Trainer`, whose epochs all have the same length; `EpochCallback` ends the stage's epochs.
    """
    arguments = stage.arguments
    settings: dict[str, Any] = {
        "output_dir": str(arguments.run_folder),
        "max_steps": plan.total,
        "ignore_data_skip": True,
        "save_strategy": "steps",
        "use_cpu": PartialState().device.type == "cpu",
        "logging_steps": 10,
        "run_name": run_name(stage),
        # An L step trains the collaborative rows alone, a C step the content rows alone.
        "ddp_find_unused_parameters": len(plan.documents) > 1,
        **{name: getattr(arguments, name) for name in SHARED_NAMES},
        **(arguments.trainer if isinstance(arguments.trainer, dict) else {}),
    }
    try:
        built = StageTrainerArguments(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer: transformers.TrainingArguments refuses {arguments.trainer}: {error}") from error
    built.of_stage = {name: value for name, value in dataclasses.asdict(arguments).items() if name != PASSED_ON}
    built._n_gpu = min(built.n_gpu, 1)  # `Trainer` would split a batch among all GPUs of one process, by nn.DataParallel
    return built


__all__ = ["StageTrainerArguments", "run_name", "trainer_arguments", "wandb_without_a_run"]
