"""Load a recommender of either system from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModel

import modeling_cllm4rec as _registers_the_model_types  # noqa: F401
from modeling_cllm4rec.recommending import RecommendsItems

__all__ = ["load_recommender"]


def load_recommender(name: str | Path) -> Any:
    """The `CLLM4RecForRecommendation` or `LCRecForRecommendation` that a folder or a Hub name holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a model that does not recommend.
    """
    try:
        model = AutoModel.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"--model: {name} is no folder with a model and could not be read from the Hub ({error})"
        ) from error
    if not isinstance(model, RecommendsItems):
        raise ValueError(
            f"--model: {name} holds a {type(model).__name__}, which does not recommend; name a finetuned or aligned model"
        )
    return model
