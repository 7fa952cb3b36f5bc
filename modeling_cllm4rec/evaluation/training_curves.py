"""Training curves as one picture next to the training record: losses, validation metrics, and the kept epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modeling_cllm4rec.core.errors import InputError, MissingFileError, MissingPackageError
from modeling_cllm4rec.core.json_objects import read_json
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.core.saved_folder import CURVES_FILE

logger = logging.getLogger(__name__)

RECORD_FILE = "training.json"
"""File of a run folder with the losses and metrics of each epoch."""
DELETE = "delete it: the model stays as it is, without its curves"
"""What to do with a damaged record, for messages."""
NOT_MEASURED = ("epoch", "step", "seconds", "selection")


class Panel(NamedTuple):
    """One plot: a stage, the label of its axis, name -> (epochs from 1, values), and the kept epoch, if any."""

    stage: str
    label: str
    curves: dict[str, tuple[list[int], list[float]]]
    best: int | None


def plot_training(folder: str | Path) -> Path:
    """Plot the training of a run: a row per stage with its losses and its validation metrics by epoch.

    Args:
        folder: folder of a run or an index, with `training.json`.

    Returns:
        Path of `training_curves.png` in the folder; an existing file is overwritten.

    Raises:
        MissingFileError: the folder has no training record.
        InputError: no stage of the record has epochs, or the record is damaged.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> plot_training("runs/mine")  # doctest: +SKIP
        PosixPath('runs/mine/training_curves.png')
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise MissingFileError(f"folder: there is no {path}; give the folder of a run that came to its end")
    require("matplotlib", "benchmark", CURVES_FILE)
    found = panels(read_json(path, DELETE))
    if not found:
        raise InputError(f"folder: no stage in {path} has losses or metrics of its epochs; there is nothing to draw")
    picture = Path(folder) / CURVES_FILE
    _figure(found).savefig(picture, dpi=110)
    return picture


def keep_curves(folder: Path) -> Path | None:
    """Call `plot_training` if possible: without matplotlib log a line, without epochs do nothing."""
    if not panels(read_json(folder / RECORD_FILE, DELETE)):
        return None
    try:
        return plot_training(folder)
    except MissingPackageError as error:
        logger.info("%s", error)
        return None


def panels(records: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """Return the plots of a training record (`training.json`), stage by stage, losses before metrics.

    >>> history = [{"epoch": 0, "step": 9, "train/content_nll": 3.0}, {"epoch": 1, "step": 18, "train/content_nll": 2.5}]
    >>> panels({"pretrain": {"history": history, "best_epoch": -1}})
    [Panel(stage='pretrain', label='loss', curves={'train/content_nll': ([1, 2], [3.0, 2.5])}, best=None)]
    """
    found = []
    for stage, record in records.items():
        history: Sequence[Mapping[str, Any]] = record.get("history", [])
        names = [name for name in dict.fromkeys(name for epoch in history for name in epoch) if name not in NOT_MEASURED]
        best = record["best_epoch"] + 1 if record.get("best_epoch", -1) >= 0 else None
        losses = [name for name in names if _is_loss(name)]
        for label, chosen in (("loss", losses), ("validation", [name for name in names if name not in losses])):
            if chosen:
                found.append(Panel(stage, label, {name: _curve(history, name) for name in chosen}, best))
    return found


def _is_loss(name: str) -> bool:
    return name.startswith("train/") or name.endswith("_nll")


def _curve(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    measured = [epoch for epoch in history if name in epoch]
    return [epoch["epoch"] + 1 for epoch in measured], [epoch[name] for epoch in measured]


def _figure(found: Sequence[Panel]) -> Any:
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(panel.stage for panel in found))
    columns = max(sum(panel.stage == stage for panel in found) for stage in stages)
    figure = Figure(figsize=(1 + 4.5 * columns, 3.2 * len(stages)), layout="constrained")
    for row, stage in enumerate(stages):
        for column, panel in enumerate(panel for panel in found if panel.stage == stage):
            _draw(figure.add_subplot(len(stages), columns, row * columns + column + 1), panel)
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    marker = "o" if max(len(epochs) for epochs, _ in panel.curves.values()) < 50 else ""
    for name, (epochs, values) in panel.curves.items():
        axes.plot(epochs, values, marker=marker, markersize=3, label=name)
    if panel.best is not None:
        axes.axvline(panel.best, color="tab:gray", linestyle="--", label=f"kept: epoch {panel.best}")
    axes.set_title(panel.stage, fontsize="medium")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, nats" if all(name.endswith("_nll") for name in panel.curves) else panel.label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


__all__ = ["RECORD_FILE", "keep_curves", "panels", "plot_training"]
