"""Run stages one after another on the processes of `torchrun`, and write what each process saw as JSON.

    torchrun --nproc_per_node 2 tests/helpers/stage_runs.py RUNS.json OUTPUT_FOLDER

RUNS.json is a list of [stage, arguments]; OUTPUT_FOLDER gets a file for each process.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import distributed

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.cllm4rec.update import UpdateArguments, update
from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.processes import process_count, process_number
from modeling_cllm4rec.lcrec.alignment import align
from modeling_cllm4rec.lcrec.arguments import AlignArguments
from modeling_cllm4rec.training.parameters import local_part
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.trainer import RecommenderTrainer

STAGES: dict[str, tuple[Any, Any]] = {
    "pretrain": (pretrain, PretrainArguments),
    "finetune": (finetune, FinetuneArguments),
    "update": (update, UpdateArguments),
    "align": (align, AlignArguments),
}


class Notes:
    """What is noted of a run: the nll of its steps, and the numbers that a process holds."""

    def __init__(self) -> None:
        self.nll: list[float] = []
        self.held: dict[str, list[int]] = {}
        count, end = Progress.count_nll, RecommenderTrainer.end_of_step

        def noted(progress: Progress, kind: str, nll: float) -> None:
            self.nll.append(nll)
            count(progress, kind, nll)

        def measured(trainer: RecommenderTrainer) -> Any:
            moments = [one for state in trainer.optimizer.state.values() for one in state.values() if one.numel() > 1]
            for name, tensors in (("weights", list(trainer.stage.model.parameters())), ("moments", moments)):
                self.held[name] = [sum(local_part(one).numel() for one in tensors), sum(one.numel() for one in tensors)]
            return end(trainer)

        Progress.count_nll, RecommenderTrainer.end_of_step = noted, measured  # type: ignore[method-assign,assignment]

    def take(self) -> dict[str, Any]:
        """Return the notes since the last time."""
        taken = {"nll": self.nll, "held": self.held}
        self.nll, self.held = [], {}
        return taken


def check_left(seen: list[dict[str, Any]]) -> None:
    """End with 3 if the processes of runs that did not fail are still joined: this may abort the interpreter at its end."""
    if distributed.is_initialized() and not any("error" in run for run in seen):
        print("the process group is alive", file=sys.stderr, flush=True)
        os._exit(3)


def main() -> None:
    """Do the runs."""
    torch.set_num_threads(1)
    notes = Notes()
    seen: list[dict[str, Any]] = []
    atexit.register(check_left, seen)
    for name, arguments in json.loads(Path(sys.argv[1]).read_text()):
        AcceleratorState._reset_state()  # it remembers the precision
        stage, kind = STAGES[name]
        try:
            model, progress = stage(kind(**arguments))
        except CLLM4RecError as error:
            seen.append({"error": f"{type(error).__name__}: {error}"})
            print(f"process {process_number()}: {seen[-1]['error']}", file=sys.stderr)  # others may wait for this one in vain
            continue
        devices = sorted({one.device.type for one in model.parameters()})
        history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in progress.history]
        seen.append({**notes.take(), "finished": progress.finished, "history": history, "devices": devices})
    file = Path(sys.argv[2]) / f"{process_number()}-of-{process_count()}.json"
    file.write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
