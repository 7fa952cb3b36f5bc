"""Training of the RQ-VAE (section III-B of LC-Rec): resumable, with all random numbers from (seed, epoch)."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.training import checkpoints
from modeling_cllm4rec.training.interruption import InterruptionCallback, RunInterrupted
from modeling_cllm4rec.training.module_trainer import train_module

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


@dataclass
class IndexProgress:
    """Progress of the indexer's training. The last epoch is kept."""

    best_epoch: ClassVar[int] = -1

    epoch: int = 0
    finished: bool = False
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """Finished epochs, which are the steps of this stage."""
        return self.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        """Loss of each epoch."""
        return [{"epoch": epoch, "train/loss": loss} for epoch, loss in enumerate(self.losses)]


def train_rqvae(model: RQVAEModel, embeddings: np.ndarray, arguments: IndexArguments) -> IndexProgress:
    """Train in place, or resume from the last checkpoint.

    Raises:
        DivergedError: the loss of a step is not finite.
        RunInterrupted: a signal ended the run; its last epoch is saved.
        FileWriteError: a checkpoint cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    points = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32)).to(device)
    steps, epochs = -(-len(points) // arguments.per_device_train_batch_size), arguments.epochs_of(len(points))
    if epochs < arguments.num_train_epochs:
        logger.info(
            "max_steps %d allows %d passes over %d items in place of num_train_epochs %d",
            *(arguments.max_steps, epochs, len(points), arguments.num_train_epochs),
        )
    # The share of the warm-up stays what the arguments say.
    warmup = arguments.warmup_epochs * epochs * steps // arguments.num_train_epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=arguments.weight_decay, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, epochs * steps)
    folder = arguments.folder / CHECKPOINTS
    progress = IndexProgress()
    last = checkpoints.latest(folder) if arguments.resume else None
    if last is not None:
        progress = _restore(last, model, optimizer, schedule)
        logger.info("resumed after epoch %d of %d", progress.epoch, epochs)
    model.initialize_codebooks(points, arguments.seed)  # a resumed model keeps its codebooks
    used = torch.zeros(model.config.num_levels, model.config.codebook_size, dtype=torch.bool)
    sizes: list[int] = []
    interruption = InterruptionCallback()

    def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.from_numpy(np.random.default_rng((arguments.seed, epoch)).permutation(len(points)))
        torch.manual_seed(_seed(arguments.seed, epoch, 1))  # dropout
        used.zero_()
        parts = order.split(arguments.per_device_train_batch_size)
        sizes[:] = map(len, parts)
        yield from ({"rows": part} for part in parts)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        out = model(points[rows], uniform_last=True)
        used[torch.arange(model.config.num_levels), out.codes.cpu()] = True
        return out.loss

    def end_epoch(epoch: int, losses: list[float]) -> bool:
        # After the epoch, because a code may be unused in one batch and used in the next.
        model.revive_dead_codes(points, used, _seed(arguments.seed, epoch, 2))
        progress.epoch += 1
        progress.losses.append(float(np.average(losses, weights=sizes)))
        progress.seconds = before + time.perf_counter() - started
        bar.update()
        bar.set_postfix_str(f"loss {progress.losses[-1]:.5f}", refresh=False)
        stop = progress.epoch == arguments.stop_after_epochs or bool(interruption.received)
        if stop or progress.epoch % arguments.save_every == 0:
            _save(folder, progress, model, optimizer)
        return stop

    started, before = time.perf_counter(), progress.seconds
    try:
        with tqdm(total=epochs, initial=progress.epoch, desc="rqvae", unit="epoch", mininterval=2.0) as bar:
            train_module(
                model,
                batches,
                loss,
                optimizer,
                num_train_epochs=epochs,
                steps_per_epoch=steps,
                title="RQ-VAE",
                advice="lower learning_rate, or look at the embeddings",
                schedule=schedule,
                max_grad_norm=arguments.max_grad_norm,
                first_epoch=progress.epoch,
                end_epoch=end_epoch,
                callbacks=[interruption],
            )
    finally:
        interruption.give_back()
    if progress.epoch < epochs and interruption.received:
        raise RunInterrupted(interruption.received, "index-items", progress.epoch, "epoch")
    if progress.epoch == epochs:
        progress.finished = True
        torch.nn.Module.to(model, "cpu")
    return progress


def _seed(*counters: int) -> int:
    """Return a seed made of counters."""
    return int(np.random.SeedSequence(counters).generate_state(1)[0])


def _save(folder: Path, progress: IndexProgress, model: RQVAEModel, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= checkpoints.optimizer_tensors(optimizer)
    state = {"epoch": progress.epoch, "losses": progress.losses, "seconds": progress.seconds}
    checkpoints.save_step(folder, progress.epoch, tensors, state)


def _restore(path: Path, model: RQVAEModel, optimizer: torch.optim.Optimizer, schedule: Any) -> IndexProgress:
    tensors, state = checkpoints.read(path)
    model.load_state_dict({name[len("model.") :]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    checkpoints.restore_optimizer(optimizer, tensors)
    steps = next(int(tensor) for name, tensor in tensors.items() if name.startswith("optimizer.") and name.endswith(".step"))
    # The schedule has no state of its own: it is a function of the steps, so it is set, not saved.
    schedule.last_epoch = steps
    for group, start, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = start * factor(steps)
    return IndexProgress(epoch=state["epoch"], losses=state["losses"], seconds=state.get("seconds", 0.0))
