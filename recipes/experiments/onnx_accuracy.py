"""Size, accuracy and speed of CLLM4Rec's ONNX graph with weights in float32, bfloat16 and int8.

    python recipes/experiments/onnx_accuracy.py --model runs/instruments --data data/instruments

It prints one line of JSON for torch and for each type. Metrics are those of the validation split. The scores of a graph are
compared with torch's for the same users; the milliseconds are those of one prompt at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.exports.onnx_graph import GRAPH_FILE, export_onnx
from modeling_cllm4rec.exports.onnx_weights import WEIGHT_TYPES, reduce_weights
from modeling_cllm4rec.hub.loading import load_recommender

METRICS = ("recall@20", "ndcg@100")


class GraphRecommender:
    """Scores of a graph for prompts one at a time, for the evaluator.

    Attributes:
        scores: (J,) scores of each user, by user index.
        seconds: time of the graph alone.
    """

    def __init__(self, model: Any, graph: Path | None) -> None:
        self.model, self.num_items = model, model.num_items
        self.session = None if graph is None else onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.scores: dict[int, np.ndarray] = {}
        self.seconds = 0.0

    def score_histories(self, user_indices: np.ndarray | None, histories: Histories) -> np.ndarray:
        """Return (B, J) float32 scores, by the graph or, without one, by torch."""
        assert user_indices is not None
        prompts = self.model.build_prompts(user_indices, np.split(histories.items, histories.indptr[1:-1]))
        rows = []
        for user, prompt in zip(user_indices.tolist(), prompts, strict=True):
            start = time.perf_counter()
            if self.session is None:
                row = self.model.score_prompts([prompt]).numpy()[0]
            else:
                ids = prompt[None].astype(np.int64)
                row = np.asarray(self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0])[0]
            self.seconds += time.perf_counter() - start
            self.scores[user] = row
            rows.append(row)
        return np.stack(rows)


def best(scores: np.ndarray) -> set[int]:
    """Return the ten best items of (J,) scores."""
    return set(np.argsort(-scores, kind="stable")[:10].tolist())


def measure(name: str, recommender: GraphRecommender, data: RecommendationData, users: int, size: int) -> dict[str, Any]:
    """Return metrics of the validation split, megabytes and milliseconds a prompt."""
    report = evaluate(recommender, data, metrics=METRICS, progress=False, n_resamples=0, max_users=users)
    milliseconds = 1000 * recommender.seconds / len(recommender.scores)
    return {"weights": name, "MB": size / 1e6, "ms": milliseconds, "users": len(recommender.scores), **report.metrics}


def main() -> None:
    """Print the measurements."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", required=True, help="folder of a finetuned CLLM4Rec model")
    flags.add_argument("--data", required=True, help="its data folder")
    flags.add_argument("--users", type=int, default=500, help="users of the validation split, drawn at random")
    given = flags.parse_args()
    model, data = load_recommender(given.model, device="cpu").float(), RecommendationData.load(given.data)
    torch_scores = GraphRecommender(model, None)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    print(json.dumps(measure("torch", torch_scores, data, given.users, size)), flush=True)
    with TemporaryDirectory() as folder:
        export_onnx(model, Path(folder, "float32"))
        for dtype in WEIGHT_TYPES:
            place = Path(folder, dtype)
            if dtype != "float32":
                shutil.copytree(Path(folder, "float32"), place)
                reduce_weights(place / GRAPH_FILE, dtype)
            recommender = GraphRecommender(model, place / GRAPH_FILE)
            size = sum(path.stat().st_size for path in place.glob(f"{GRAPH_FILE}*"))
            row = measure(dtype, recommender, data, given.users, size)
            pairs = [(recommender.scores[user], scores) for user, scores in torch_scores.scores.items()]
            row["largest_difference"] = float(max(np.abs(one - other).max() for one, other in pairs))
            row["top_10_overlap"] = float(np.mean([len(best(one) & best(other)) / 10 for one, other in pairs]))
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
