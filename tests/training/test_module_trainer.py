"""The trainer of small modules against a plain loop, alone in its process whatever the launch, and how it stops."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from torch import nn
from torch.nn import functional as F
from transformers import get_linear_schedule_with_warmup

from modeling_cllm4rec.core.errors import DivergedError
from modeling_cllm4rec.training import module_trainer
from modeling_cllm4rec.training.module_trainer import train_module

STEPS, EPOCHS = 5, 4


class Small:
    """A module with dropout, its batches, its loss, its optimizer and its schedule."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.05, weight_decay=0.1)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 3, STEPS * EPOCHS)
        self.losses: list[list[float]] = []

    def batches(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(STEPS):
            yield {"points": torch.randn(6, 4, generator=generator), "labels": torch.randint(3, (6,), generator=generator)}

    def loss(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.module(points), labels)

    def end_epoch(self, epoch: int, losses: list[float]) -> bool:
        assert not self.module.training
        self.losses.append(losses)
        return False

    def train(self, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "num_train_epochs": EPOCHS,
            "steps_per_epoch": STEPS,
            "title": "Small",
            "advice": "lower lr",
            "schedule": self.schedule,
            "max_grad_norm": 0.2,
            "end_epoch": self.end_epoch,
        }
        train_module(self.module, self.batches, self.loss, self.optimizer, **{**settings, **changes})

    def train_plainly(self, max_grad_norm: float) -> None:
        for epoch in range(EPOCHS):
            self.losses.append([])
            for batch in self.batches(epoch):
                loss = self.loss(**batch)
                self.optimizer.zero_grad()
                loss.backward()
                if max_grad_norm:
                    nn.utils.clip_grad_norm_(self.module.parameters(), max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.losses[-1].append(loss.item())


@pytest.mark.parametrize("max_grad_norm", [0.2, 0.0])
def test_it_equals_a_plain_loop(max_grad_norm: float) -> None:
    """Losses, weights and moments, with dropout; the generators end in the same state."""
    plain = Small()
    plain.train_plainly(max_grad_norm)
    drawn = torch.rand(1)
    ours = Small()
    ours.train(max_grad_norm=max_grad_norm)
    assert torch.equal(torch.rand(1), drawn)
    assert len(ours.losses) == EPOCHS and not ours.module.training
    np.testing.assert_allclose(ours.losses, plain.losses, rtol=1e-6)
    torch.testing.assert_close(ours.module.state_dict(), plain.module.state_dict(), rtol=1e-6, atol=1e-7)
    moments = [list(one.optimizer.state_dict()["state"].values()) for one in (ours, plain)]
    torch.testing.assert_close(*moments, rtol=1e-6, atol=1e-7)


def test_a_training_in_two_pieces() -> None:
    whole, parts = Small(), Small()
    whole.train()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    parts = Small()
    parts.train(end_epoch=lambda epoch, losses: epoch == 1)
    parts.train(first_epoch=2)
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(parts.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    assert [len(losses) for losses in parts.losses] == [STEPS] * 2, "those of the second piece"
    for nothing in ({"first_epoch": EPOCHS}, {"steps_per_epoch": 0}):
        parts.module.train()
        parts.train(**nothing)
        assert not parts.module.training and len(parts.losses) == 2, "nothing is left"


def test_without_dropout_the_module_is_never_in_training_mode() -> None:
    small = Small()
    modes = set()

    def loss(**batch: torch.Tensor) -> torch.Tensor:
        modes.add(small.module.training)
        return Small.loss(small, **batch)

    small.loss = loss  # type: ignore[method-assign]
    small.train(dropout=False)
    assert modes == {False}


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    small = Small()
    before: dict[str, torch.Tensor] = {}

    def end_epoch(epoch: int, losses: list[float]) -> bool:
        before.update({name: one.clone() for name, one in small.module.state_dict().items()})
        small.loss = lambda points, labels: (small.module(points) / 0).sum()  # type: ignore[method-assign]
        return False

    def loss(**batch: torch.Tensor) -> torch.Tensor:
        return small.loss(**batch)

    with pytest.raises(DivergedError, match=r"Small: the loss of epoch 2 is (nan|-?inf); lower lr"):
        train_module(
            small.module,
            small.batches,
            loss,
            small.optimizer,
            num_train_epochs=EPOCHS,
            steps_per_epoch=STEPS,
            title="Small",
            advice="lower lr",
            end_epoch=end_epoch,
        )
    torch.testing.assert_close(small.module.state_dict(), before, rtol=0, atol=0)


def test_it_trains_alone_in_any_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of two processes, of which the other does not come; the launch's precision is not its own."""
    plain = Small()
    plain.train()
    launch = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    launch |= {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    small = Small()
    small.train()
    assert small.losses == plain.losses
    assert {name: os.environ[name] for name in launch} == launch


def test_accelerate_knows_what_it_knew_before() -> None:
    PartialState._reset_state()
    Small().train()
    assert not PartialState._shared_state, "nothing: the next training may choose another device"
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    seen: list[str] = []

    def end_epoch(epoch: int, losses: list[float]) -> bool:
        seen.append(Accelerator().mixed_precision)
        return True

    Small().train(end_epoch=end_epoch)
    assert seen == ["no"] and accelerator.mixed_precision == "bf16" and Accelerator(cpu=True).mixed_precision == "bf16"


def test_an_error_leaves_no_trace() -> None:
    before = dict(PartialState().__dict__)

    def end_epoch(epoch: int, losses: list[float]) -> bool:
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        Small().train(end_epoch=end_epoch)
    assert PartialState().__dict__ == before


def test_generators_of_python_and_numpy_are_left_alone() -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    def after(work: Callable[[], None]) -> tuple[float, float]:
        random.seed(1)
        np.random.seed(1)
        work()
        return draw()

    assert after(Small().train) == after(lambda: None)


def test_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    folder = module_trainer.tempfile.TemporaryDirectory

    def noted() -> Any:
        one = folder()
        made.append(one.name)
        return one

    monkeypatch.setattr(module_trainer.tempfile, "TemporaryDirectory", noted)
    Small().train()
    assert not list(tmp_path.iterdir()) and len(made) == 1 and not Path(made[0]).exists()
