"""Report on semantic IDs: collisions, use of the codes, displacement of items, and reconstruction error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, pieces, residuals, row_numbers, shared_codes

__all__ = ["REPORT_FILES", "check_plots", "semantic_id_report", "save_report"]

REPORT_FILES = ("report.md", "code_use.png")
"""Files of `save_report`; the second one with `plots` only."""


def semantic_id_report(
    semantic_ids: SemanticIds,
    embeddings: np.ndarray | None = None,
    indexer: RQVAEModel | None = None,
    earlier: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the numbers of the report.

    Args:
        embeddings: (J, input_dim) of the items; indexer: the model that quantized them. Both or neither.
        earlier: name -> (J, H) codes before conflicts were resolved.

    Returns:
        `collisions`: name -> items that share their codes with another; `used_codes` and `entropy_bits` (at most log2 K) of
        each level; `prefixes`: distinct prefixes of 1, 2, ... codes. With an indexer also `displacement`, the mean distance of
        a latent to the sum of its code vectors, and `reconstruction_error`, mean squared.
    """
    codes, size, levels = semantic_ids.codes, semantic_ids.codebook_size, semantic_ids.num_levels
    counts = [np.bincount(codes[:, level], minlength=size) for level in range(levels)]
    report: dict[str, Any] = {
        "items": semantic_ids.num_items,
        "num_levels": levels,
        "codebook_size": size,
        "collisions": {name: len(shared_codes(rows)) for name, rows in [*(earlier or {}).items(), ("index", codes)]},
        "used_codes": [int((count > 0).sum()) for count in counts],
        "entropy_bits": [round(_entropy(count), 3) for count in counts],
        "prefixes": [len(np.unique(row_numbers(codes[:, : level + 1], size))) for level in range(levels)],
        "code_counts": [count.tolist() for count in counts],
    }
    if embeddings is None or indexer is None:
        return report
    codebooks, named = indexer.codebook_array, {**(earlier or {}), "index": codes}
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in named}
    error = 0.0
    for part in pieces(len(codes)):
        latents = indexer.latents(embeddings[part])
        left = {name: residuals(latents, codebooks, rows[part], levels) for name, rows in named.items()}
        for name, rest in left.items():
            lengths[name].append(np.linalg.norm(rest, axis=1))
        with torch.no_grad():
            decoded = indexer.decoder(torch.from_numpy((latents - left["index"]).astype(np.float32))).numpy()
        error += float(((decoded - embeddings[part]) ** 2).mean()) * (len(latents) / len(codes))
    report["displacement"] = {name: float(np.concatenate(parts).mean()) for name, parts in lengths.items()}
    report["moved_items"] = {name: int((rows != codes).any(1).sum()) for name, rows in (earlier or {}).items()}
    report["reconstruction_error"] = error
    columns = np.array_split(embeddings, len(pieces(len(codes))), axis=1)
    report["variance"] = float(np.concatenate([some.var(axis=0) for some in columns]).mean())
    return report


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def save_report(folder: Path, report: Mapping[str, Any], plots: bool = False) -> None:
    """Write the report as Markdown and, with `plots`, the use of the codes as a picture (see `check_plots`)."""
    text, picture = REPORT_FILES
    (folder / text).write_text(as_markdown(report), encoding="utf-8")
    if plots:
        _plot(folder / picture, report)


def check_plots() -> None:
    """Check that matplotlib, which draws the plots, is installed.

    Raises:
        MissingPackageError: it is not.
    """
    require("matplotlib", "lcrec", "plots", "pass plots=False")


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown tables."""
    lines = [
        f"# Semantic IDs of {report['items']} items, {report['num_levels']} levels of {report['codebook_size']} codes",
        "",
        "| codes | items that share them |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in report["collisions"].items()),
        "",
        "| level | codes used | entropy, bits | prefixes |",
        "|---|---|---|---|",
    ]
    for level, (used, bits, prefixes) in enumerate(
        zip(report["used_codes"], report["entropy_bits"], report["prefixes"], strict=True)
    ):
        lines.append(f"| {level + 1} | {used} of {report['codebook_size']} | {bits} | {prefixes} |")
    if "displacement" in report:
        lines += ["", "| codes | mean distance to their vectors | items moved from there |", "|---|---|---|"]
        moved = {**report["moved_items"], "index": 0}
        lines += [f"| {name} | {value:.4f} | {moved[name]} |" for name, value in report["displacement"].items()]
        lines += ["", f"Reconstruction error {report['reconstruction_error']:.6f} of a variance of {report['variance']:.6f}."]
    else:
        lines += ["", "Made without embeddings of texts: distances and a reconstruction error do not apply."]
    return "\n".join(lines) + "\n"


def _plot(path: Path, report: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 * report["num_levels"]), layout="constrained")
    for level, counts in enumerate(report["code_counts"]):
        axes = figure.add_subplot(report["num_levels"], 1, level + 1)
        axes.bar(range(len(counts)), sorted(counts, reverse=True), width=1.0)
        axes.set_ylabel(f"level {level + 1}")
    axes.set_xlabel("codes, most used first; height: items")
    figure.savefig(path, dpi=100)
