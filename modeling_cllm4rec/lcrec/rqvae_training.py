"""Training of the RQ-VAE (section III-B of LC-Rec): resumable, with all random numbers from (seed, epoch)."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from modeling_cllm4rec.core.errors import DivergedError
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.training import checkpoints

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
    """Train in place, or resume from the last checkpoint."""
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
    started, before = time.perf_counter(), progress.seconds
    bar = tqdm(total=epochs, initial=progress.epoch, desc="rqvae", unit="epoch", mininterval=2.0)
    while progress.epoch < epochs:
        loss, used = _epoch(model, points, optimizer, schedule, arguments, progress.epoch)
        # After the epoch, because a code may be unused in one batch and used in the next.
        model.revive_dead_codes(points, used, _seed(arguments.seed, progress.epoch, 2))
        if not np.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in epoch {progress.epoch + 1}; lower lr, or look at the embeddings")
        progress.epoch += 1
        progress.losses.append(loss)
        progress.seconds = before + time.perf_counter() - started
        bar.update()
        bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
        stop = progress.epoch == arguments.stop_after_epochs
        if stop or progress.epoch % arguments.save_every == 0:
            _save(folder, progress, model, optimizer)
        if stop and progress.epoch < epochs:
            bar.close()
            return progress
    bar.close()
    progress.finished = True
    torch.nn.Module.to(model, "cpu").eval()
    return progress


def _epoch(
    model: RQVAEModel,
    points: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    arguments: IndexArguments,
    epoch: int,
) -> tuple[float, torch.Tensor]:
    """Run one pass over the items and return the mean loss and the used codes: (H, K) bool."""
    order = torch.from_numpy(np.random.default_rng((arguments.seed, epoch)).permutation(len(points)))
    torch.manual_seed(_seed(arguments.seed, epoch, 1))  # dropout
    used = torch.zeros(model.config.num_levels, model.config.codebook_size, dtype=torch.bool)
    model.train()
    total = 0.0
    for part in order.split(arguments.per_device_train_batch_size):
        out = model(points[part.to(points.device)], uniform_last=True)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        clip_grad_norm_(model.parameters(), arguments.max_grad_norm or float("inf"))
        optimizer.step()
        schedule.step()
        total += float(out.loss.detach()) * len(part)
        used[torch.arange(model.config.num_levels), out.codes.cpu()] = True
    return total / len(points), used


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
