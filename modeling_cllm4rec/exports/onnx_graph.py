"""Scoring as ONNX, without torch: token ids and their mask to the scores of all items, or of the tokens of semantic IDs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.errors import InputError, RunError
from modeling_cllm4rec.core.language_model import decoder_arguments, real_positions, word_head
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.exports.onnx_weights import WEIGHT_TYPES, reduce_weights
from modeling_cllm4rec.exports.output_folder import new_output_folder, require_exportable
from modeling_cllm4rec.exports.semantic_id_files import write_semantic_ids
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

GRAPH_FILE = "model.onnx"
"""The graph in an export to ONNX."""
ABOUT_FILE = "model.json"
"""Description of the graph's inputs, outputs and prompts."""
TOLERANCE = 1e-4
"""Largest allowed difference between the scores of torch and of onnxruntime with weights in float32."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PROMPTS_COMPARED, BEST = 64, 10
_SEED = 0

WeightType = Literal["float32", "bfloat16", "int8"]
"""Types of the weights in an export to ONNX."""


class ItemScores(nn.Module):
    """`CLLM4RecForRecommendation.forward` without branches that depend on values, so that it can be traced.

    Positions count real tokens only, so prompts may be padded on either side.
    """

    outputs = ("item_logits",)

    def __init__(self, model: CLLM4RecForRecommendation) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return (B, J) item logits of (B, T) token ids and their mask, both int64."""
        model = self.model
        states = model.backbone.base_model(
            inputs_embeds=model.embed_tokens(input_ids, "collaborative"),
            attention_mask=attention_mask,
            position_ids=real_positions(attention_mask),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        return (model.item_logits(_last_states(states, attention_mask)),)

    def expected(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the model's own answer, by another way than `forward`."""
        return (self.model(input_ids, attention_mask).logits,)


class NextTokenScores(nn.Module):
    """Score LC-Rec's next token: ln p, over all tokens, of those of semantic IDs; with an item head, also ln p of all items."""

    def __init__(self, model: LCRecForRecommendation) -> None:
        super().__init__()
        self.model, self.head = model, word_head(model.backbone)
        self.outputs = ("index_log_probs",) if model.item_head is None else ("index_log_probs", "item_log_probs")
        self.tokens = slice(model.config.first_index_token, model.config.last_index_token + 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return (B, H * K) ln p of the tokens and, with an item head, (B, J) ln p of the items; both inputs int64 (B, T)."""
        decoder = self.model.backbone.base_model
        own = decoder_arguments(decoder, attention_mask, input_ids.shape[1])
        states = decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True, **own
        ).last_hidden_state
        last = _last_states(states, attention_mask)
        tokens = self.head(last).float().log_softmax(-1)[:, self.tokens]
        if self.model.item_head is None:
            return (tokens,)
        return tokens, self.model.item_head(last).log_softmax(-1)

    def expected(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the model's own answer, by another way than `forward`."""
        prompts = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        logits = torch.stack([self.model(prompt[None]).logits[0, -1] for prompt in prompts])
        tokens = logits.float().log_softmax(-1)[:, self.tokens]
        if self.model.item_head is None:
            return (tokens,)
        return tokens, self.model.head_scores([prompt.numpy() for prompt in prompts])


def export_onnx(model: Any, folder: str | Path, dtype: WeightType = "float32") -> dict[str, Any]:
    """Write `model.onnx` (and large weights next to it), `model.json` and `catalogue.parquet`, and compare with torch.

    For LC-Rec also the files of its semantic IDs (`semantic_id_files.write_semantic_ids`), whose decoder searches with the graph.

    Args:
        model: a model that is ready to recommend.
        folder: new or empty output folder.
        dtype: type of the weights in the file. Scores are computed in float32 from weights in float32 or bfloat16. With int8,
            matrix products are computed in 8 bits, with a scale for each output of a layer.

    Returns:
        The contents of `model.json`: `outputs`, how prompts are built (CLLM4Rec: `recommendation_prompts`, `first_user_token`,
        `first_item_token`, `longest_prompt`), `items`, `dtype`, and `check`: `largest_difference` of any score, `tolerance`
        (None but for float32), `shapes` of the prompts compared, `top_10_overlap` (mean share of torch's ten best, over
        `prompts` stored histories, or random prompts where none are stored).

    Raises:
        MissingPackageError: onnx, onnxscript or onnxruntime is not installed.
        InputError: a hybrid, a model that cannot recommend, or a type that does not exist.
        ExistingFileError: the folder is not empty.
        RunError: onnxruntime's scores with float32 differ from torch's by more than 1e-4; nothing is then written.
    """
    if dtype not in WEIGHT_TYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(WEIGHT_TYPES)}")
    for package in NEEDED:
        require(package, "onnx", "export onnx")
    require_exportable(model, "export onnx")
    with new_output_folder(folder) as temporary:
        traced = traced_module(model.float().cpu())
        _write_graph(traced, temporary / GRAPH_FILE)
        reduce_weights(temporary / GRAPH_FILE, dtype)
        check = compare(model, temporary / GRAPH_FILE, TOLERANCE if dtype == "float32" else None)
        about = {"outputs": traced.outputs, "items": model.num_items, "dtype": dtype, **_prompts(model), "check": check}
        if isinstance(model, LCRecForRecommendation):
            write_semantic_ids(model, temporary)
        model.catalogue.save(temporary)
        (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def traced_module(model: Any) -> ItemScores | NextTokenScores:
    """Return the module that is traced for a model.

    Raises:
        InputError: a system that has none.
    """
    if isinstance(model, CLLM4RecForRecommendation):
        return ItemScores(model).eval()
    if isinstance(model, LCRecForRecommendation):
        return NextTokenScores(model).eval()
    raise InputError(
        f"export onnx: got a {type(model).__name__}; allowed are the models of CLLM4Rec and LC-Rec; serve this one by "
        "`cllm4rec serve`"
    )


def compare(model: Any, graph: Path, tolerance: float | None) -> dict[str, Any]:
    """Score prompts of several shapes, padded on either side, by onnxruntime and by torch.

    Args:
        tolerance: largest allowed difference; None allows any.

    Returns:
        `largest_difference`, `tolerance`, `shapes` (prompts, tokens), `top_10_overlap` and `prompts`, see `export_onnx`.

    Raises:
        RunError: a difference exceeds the tolerance.
    """
    import onnxruntime

    traced = traced_module(model)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def both(ids: torch.Tensor, mask: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
        with torch.no_grad():
            expected = [scores.numpy() for scores in traced.expected(ids, mask)]
        found = session.run(list(traced.outputs), {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return expected, [np.asarray(scores) for scores in found]

    longest = _longest_prompt(model)
    shapes = [(1, 1), (1, min(9, longest)), (5, min(16, longest)), (2, longest)]
    largest = 0.0
    for prompts, tokens in shapes:
        ids, mask = random_prompts(model, prompts, tokens)
        for padded in ((ids, mask), (ids.flip(1), mask.flip(1))):
            for one, other in zip(*both(*padded), strict=True):
                largest = max(largest, float(np.abs(one - other).max()))
    if tolerance is not None and not largest <= tolerance:
        raise RunError(
            f"export onnx: onnxruntime's scores differ from torch's by {largest:.2g}, more than {tolerance:g}; "
            f"do not use {graph.name}, and report the backbone"
        )
    overlaps, ids_and_masks = [], _real_prompts(model)
    for one_prompt in ids_and_masks:
        expected, found = both(*one_prompt)
        overlaps.append(np.mean([_overlap(one[0], other[0]) for one, other in zip(expected, found, strict=True)]))
    return {
        "largest_difference": largest,
        "tolerance": tolerance,
        "shapes": shapes,
        f"top_{BEST}_overlap": float(np.mean(overlaps)),
        "prompts": len(overlaps),
    }


def random_prompts(model: Any, prompts: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, T) random token ids and their mask; row i has T - i tokens and is padded on the right."""
    generator = torch.Generator().manual_seed(_SEED)
    known = model.config.total_tokens if model.scores_catalogue else model.config.last_index_token + 1
    ids = torch.randint(known, (prompts, tokens), generator=generator)
    lengths = (tokens - torch.arange(prompts)).clamp(min=1)
    return ids, (torch.arange(tokens) < lengths[:, None]).long()


def _real_prompts(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return prompts of stored histories, drawn at random, one a batch; random prompts for a model that stores none."""
    if model.users is None or not model.users.has_histories:
        return [random_prompts(model, 1, min(1 + number, _longest_prompt(model))) for number in range(PROMPTS_COMPARED)]
    users = np.random.default_rng(_SEED).permutation(len(model.users))
    users = users[model.readable(users, "skip")][:PROMPTS_COMPARED]
    prompts = model.build_prompts(users, [model.users.history(int(user)) for user in users])
    return [model.pad_prompts([prompt]) for prompt in prompts]


def _longest_prompt(model: Any) -> int:
    return int(model.config.prompt_limit if model.scores_catalogue else model.config.context_length - model.config.num_levels)


def _overlap(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the share of the best of (n,) expected scores that are among the best found."""
    best = [set(np.argsort(-scores, kind="stable")[:BEST].tolist()) for scores in (expected, found)]
    return len(best[0] & best[1]) / len(best[0])


def _prompts(model: Any) -> dict[str, Any]:
    """Return how prompts are built; LC-Rec's are in the file of its semantic IDs."""
    if not model.scores_catalogue:
        return {}
    config = model.config
    return {
        "recommendation_prompts": config.recommendation_prompts,
        "first_user_token": config.id_offset,
        "first_item_token": config.id_offset + config.num_users,
        "longest_prompt": config.prompt_limit,
    }


def _last_states(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the (B, K) states of the last real tokens."""
    last = (torch.arange(attention_mask.shape[1], device=attention_mask.device) * attention_mask).argmax(1)
    return states[torch.arange(states.shape[0], device=states.device), last]


def _write_graph(traced: ItemScores | NextTokenScores, file: Path) -> None:
    ids, mask = random_prompts(traced.model, 3, 7)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quietly():
        program = torch.onnx.export(
            traced,
            (ids, mask),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "attention_mask"],
            output_names=list(traced.outputs),
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
        )
        assert program is not None
        program.save(file, external_data=True)


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


__all__ = ["ABOUT_FILE", "GRAPH_FILE", "TOLERANCE", "ItemScores", "NextTokenScores", "WeightType", "export_onnx"]
