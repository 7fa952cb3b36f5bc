"""Short runs of both stages on the tiny world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.pretraining import pretrain
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _plain_accelerator() -> None:
    """Accelerate remembers the precision of the first run of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no training curves: with matplotlib they take as long as these trainings. tests/evaluation draws them."""
    monkeypatch.setattr("modeling_cllm4rec.hub.model_card.keep_curves", lambda folder: None)


@pytest.fixture(scope="session")
def still_backbone(tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny GPT-2 without dropout: the same training, divided otherwise, must then give the same weights."""
    folder = tmp_path_factory.mktemp("still") / "gpt2"
    shutil.copytree(tiny_backbones["gpt2"], folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pretrain_arguments(data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path) -> Callable[..., PretrainArguments]:
    """Arguments of a short pretraining: a warm-up epoch and an alternating one, 9 C, then 2 L and 5 C steps."""

    def make(**changes: Any) -> PretrainArguments:
        values: dict[str, Any] = {
            "data": str(data_folder),
            "output": str(tmp_path / "run"),
            "backbone": str(tiny_backbones["gpt2"]),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 32,
            "content_share": 0.3,
            "max_text_tokens": 12,
            "learning_rate": 0.01,
            **changes,
        }
        return PretrainArguments(**values)

    return make


@pytest.fixture(scope="session")
def pretrained(data_folder: Path, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pretrained model (GPT-2 with dropout): read it, do not write into it."""
    return _pretrained(data_folder, tiny_backbones["gpt2"], tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="session")
def still_pretrained(data_folder: Path, still_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pretrained`, without dropout."""
    return _pretrained(data_folder, still_backbone, tmp_path_factory.mktemp("still-pretrained"))


def _pretrained(data_folder: Path, backbone: Path, run: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    values = {"data": str(data_folder), "output": str(run), "backbone": str(backbone)}
    pretrain(
        PretrainArguments(
            **values, num_train_epochs=1, warmup_epochs=0, content_share=0.2, max_text_tokens=12, learning_rate=0.01
        )
    )
    return run / "pretrained"


@pytest.fixture
def finetune_arguments(data_folder: Path, pretrained: Path, tmp_path: Path) -> Callable[..., FinetuneArguments]:
    """Arguments of a short finetuning: three epochs of 4 steps."""

    def make(**changes: Any) -> FinetuneArguments:
        values: dict[str, Any] = {
            "data": str(data_folder),
            "output": str(tmp_path / "run"),
            "start": str(pretrained),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 16,
            "max_text_tokens": 12,
            "learning_rate": 0.01,
            **changes,
        }
        return FinetuneArguments(**values)

    return make


@pytest.fixture(scope="session")
def read_weights() -> Callable[[Path | str], Weights]:
    """Return the tensors of a saved model, copied: safetensors maps the file, which some tests overwrite."""

    def read(folder: Path | str) -> Weights:
        return {name: one.clone() for name, one in load_file(Path(folder) / "model.safetensors").items()}

    return read


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[[Weights, Weights], None]:
    """Two sets of weights are equal to the bit."""

    def check(ours: Weights, theirs: Weights) -> None:
        assert ours.keys() == theirs.keys()
        different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
        assert different == []

    return check


@pytest.fixture(scope="module")
def index_folder(data: RecommendationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Semantic IDs of two levels for the items of `data`."""
    folder = tmp_path_factory.mktemp("indices") / "index"
    points = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    shape = {"num_levels": 2, "codebook_size": 8, "method": "rk-means"}
    index_items(IndexArguments(data=str(data.folder), output=str(folder), **shape), points)  # type: ignore[arg-type]
    return folder
