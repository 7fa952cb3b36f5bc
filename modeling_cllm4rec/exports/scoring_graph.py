"""CLLM4Rec's scoring as ONNX: token ids and their mask to the scores of all items, without torch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.errors import RunError
from modeling_cllm4rec.core.language_model import real_positions
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.exports.output_folder import new_output_folder, require_scoring_model

GRAPH_FILE, ABOUT_FILE = "model.onnx", "model.json"
TOLERANCE = 1e-4
"""Largest allowed difference between the scores of torch and of onnxruntime."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
_SEED = 0


class ScoringForward(nn.Module):
    """`CLLM4RecForRecommendation.forward` without branches that depend on values, so that it can be traced.

    Positions count real tokens only, so prompts may be padded on either side.
    """

    def __init__(self, model: CLLM4RecForRecommendation) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (B, J) item logits of (B, T) token ids and their mask, both int64."""
        model = self.model
        states = model.backbone.base_model(
            inputs_embeds=model.embed_tokens(input_ids, "collaborative"),
            attention_mask=attention_mask,
            position_ids=real_positions(attention_mask),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * attention_mask).argmax(1)
        return model.item_logits(states[torch.arange(states.shape[0], device=states.device), last])


def export_onnx(model: Any, folder: str | Path) -> dict[str, Any]:
    """Write `model.onnx` (and large weights next to it), `model.json` and `catalogue.parquet`, and compare with torch.

    Args:
        model: a finetuned CLLM4Rec model; scores are computed in float32.
        folder: new or empty output folder.

    Returns:
        The contents of `model.json`: how prompts are built (`recommendation_prompts`, `first_user_token`, `first_item_token`,
        `longest_prompt`), `items`, and `check` (`largest_difference`, `tolerance`, shapes of the prompts compared).

    Raises:
        MissingPackageError: onnx, onnxscript or onnxruntime is not installed.
        InputError: the model does not score all items at once (LC-Rec), or the folder is not empty.
        RunError: onnxruntime's scores differ from torch's by more than 1e-4; nothing is then written.
    """
    for package in NEEDED:
        require(package, "onnx", "export onnx")
    require_scoring_model(model, "export onnx")
    with new_output_folder(folder) as temporary:
        model = model.float().cpu().eval()
        ids, mask = random_prompts(model, 3, 7)
        dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        with _quietly():
            program = torch.onnx.export(
                ScoringForward(model).eval(),
                (ids, mask),
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask"],
                output_names=["item_logits"],
                dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            )
            assert program is not None
            program.save(temporary / GRAPH_FILE, external_data=True)
        check = compare(model, temporary / GRAPH_FILE)
        config = model.config
        about = {
            "recommendation_prompts": config.recommendation_prompts,
            "first_user_token": config.id_offset,
            "first_item_token": config.id_offset + config.num_users,
            "longest_prompt": config.prompt_limit,
            "items": config.num_items,
            "check": check,
        }
        model.catalogue.save(temporary)
        (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def compare(model: CLLM4RecForRecommendation, graph: Path) -> dict[str, Any]:
    """Score prompts of several shapes, padded on either side, by onnxruntime and by torch.

    Returns:
        `largest_difference` of any score, `tolerance`, and the `shapes` (prompts, tokens).

    Raises:
        RunError: a difference exceeds the tolerance.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    longest = model.config.prompt_limit
    shapes = [(1, 1), (1, min(9, longest)), (5, min(16, longest)), (2, longest)]
    largest = 0.0
    for prompts, tokens in shapes:
        ids, mask = random_prompts(model, prompts, tokens)
        for input_ids, attention_mask in ((ids, mask), (ids.flip(1), mask.flip(1))):
            with torch.no_grad():
                expected = model(input_ids, attention_mask).logits.numpy()
            (found,) = session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
            largest = max(largest, float(np.abs(np.asarray(found) - expected).max()))
    if not largest <= TOLERANCE:
        raise RunError(
            f"export onnx: onnxruntime's scores differ from torch's by {largest:.2g}, more than {TOLERANCE:g}; "
            f"do not use {graph.name}, and report the backbone"
        )
    return {"largest_difference": largest, "tolerance": TOLERANCE, "shapes": shapes}


def random_prompts(model: CLLM4RecForRecommendation, prompts: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, T) random token ids and their mask; row i has T - i tokens and is padded on the right."""
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(model.config.total_tokens, (prompts, tokens), generator=generator)
    lengths = (tokens - torch.arange(prompts)).clamp(min=1)
    return ids, (torch.arange(tokens) < lengths[:, None]).long()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's progress report and its warnings about optional packages."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


__all__ = ["ABOUT_FILE", "GRAPH_FILE", "TOLERANCE", "ScoringForward", "export_onnx"]
