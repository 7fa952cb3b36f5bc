"""Load models over the two processes of `torchrun` by transformers' own plans, and write what this process saw as JSON.

    torchrun --nproc_per_node 2 tests/helpers/distributed_models.py CASES.json OUTPUT_FOLDER

CASES.json is a list of {folder, tp_size or fsdp_size}. OUTPUT_FOLDER gets a file for each process: for each case the items and
scores of two histories, the loss of a training step, and for each weight its shape and that of the part that this process holds;
or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers.distributed import DistributedConfig

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.training.parameters import local_part

HISTORIES = [[0, 1, 2], [5]]


def answers(model: Any) -> dict[str, Any]:
    """Return the best items of two histories, as indices, with their scores, and the loss of a training step with labels."""
    items = [[model.catalogue.ids.ids_of([index])[0] for index in history] for history in HISTORIES]
    try:
        table = model.recommend(histories=items, k=3).table
        found = {"items": table["item"].to_pylist(), "scores": table["score"].to_pylist()}
    except InputError as error:
        found = {"refused": str(error)}
    ids = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[2]]) if model.system == "cllm4rec" else ids
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return {**found, "loss": float(loss.detach())}


def main() -> None:
    """Do the cases."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    seen: list[dict[str, Any]] = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        folder = case.pop("folder")
        kind = type(load_recommender(folder, device="cpu"))
        try:
            model = kind.from_pretrained(folder, distributed_config=DistributedConfig(**case))
        except ValueError as error:
            seen.append({"error": f"{type(error).__name__}: {error}"})
            continue
        shapes = {name: [list(weight.shape), list(local_part(weight).shape)] for name, weight in model.named_parameters()}
        seen.append({"shapes": shapes, **answers(model)})
    number = distributed.get_rank()
    (Path(sys.argv[2]) / f"{number}.json").write_text(json.dumps(seen))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
