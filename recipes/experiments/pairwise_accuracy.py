"""Pairwise accuracy: how often a model scores a user's next item above a negative that resembles it (table V of LC-Rec).

    python recipes/experiments/pairwise_accuracy.py --model runs/lcrec-mine --data data/mine --baselines popularity ease

The negative is the item whose text is nearest to that of the true item (language), the item that shares the most users with it
(collaborative), or a random one; none of them is one that the user has. The paper takes the two neighbours from embeddings of
LLaMA and of SASRec; here they are cosines of TF-IDF vectors (or of an encoder) and of training users.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.itemknn import ItemKNNRecommender
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.id_checks import check_same_ids
from modeling_cllm4rec.corpora.text_vectors import TFIDF, text_vectors
from modeling_cllm4rec.evaluation.evaluator import SAMPLE_SEED, select_users
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.systems import system_of

IntArray = npt.NDArray[np.int64]
KINDS = ("language", "collaborative", "random")


def negatives(similarities: Any, targets: IntArray, owned: npt.NDArray[np.bool_]) -> IntArray:
    """Return the item most similar to each target that its user does not have, of equal ones that with the lower index.

    Args:
        similarities: (n, J) of each target to all items.
        targets: (n,) item indices.
        owned: (n, J) items of the users, the targets among them.

    Returns:
        (n,) item indices, -1 where no item is similar at all.
    """
    left = np.where(owned, -np.inf, np.asarray(similarities, dtype=np.float64))
    best = left.argmax(axis=1)
    return np.where(left[np.arange(len(targets)), best] > 0, best, -1)


def wins(scores: npt.NDArray[np.floating], targets: IntArray, against: IntArray) -> npt.NDArray[np.float64]:
    """Return (n,) 1 where the target's score is above that of the negative, .5 where they are equal, NaN without a negative."""
    rows = np.arange(len(targets))
    difference = scores[rows, targets] - scores[rows, against]
    return np.where(against < 0, np.nan, (np.sign(difference) + 1) / 2)


def pairs_of(
    data: RecommendationData, split: str, encoder: str, seed: int, max_users: int | None = None
) -> tuple[IntArray, IntArray, dict[str, IntArray]]:
    """Return users, targets (the last item of each user in the split) and the negatives of each kind.

    Args:
        data: the data folder; split: of the targets.
        encoder: of the language negatives; seed: of the random ones.
        max_users: users of a fixed random sample, the one of `evaluate`; None for all.

    Raises:
        InputError: a user has all items, so that there is no negative, or `max_users` is below 1.
    """
    held_out, every = data.histories(split), data.histories("train", "validation", "test")
    users = np.flatnonzero(np.diff(held_out.indptr)).astype(np.int64)
    if max_users is not None and max_users < 1:
        raise InputError(f"max_users is {max_users}; it must be 1 or more")
    if max_users is not None and max_users < len(users):
        users = np.sort(np.random.default_rng(SAMPLE_SEED).choice(users, max_users, replace=False))
    targets = held_out.items[np.asarray(held_out.indptr)[1:][users] - 1].astype(np.int64)
    owned = np.zeros((len(users), data.num_items), dtype=bool)
    own = select_users(every, users)
    owned[np.repeat(np.arange(len(users)), np.diff(own.indptr)), own.items] = True
    if owned.all(axis=1).any():
        raise InputError("a user has all items, so there is no negative to compare with; use a larger catalogue")
    texts = text_vectors(data, encoder=encoder)
    language = texts[targets] @ texts.T
    shared = ItemKNNRecommender.fit(data, shrink=0.0).similarities[targets]
    drawn = np.random.default_rng(seed).random(owned.shape)
    found = {"language": language, "collaborative": shared, "random": drawn}
    dense = {kind: one.toarray() if hasattr(one, "toarray") else one for kind, one in found.items()}
    return users, targets, {kind: negatives(dense[kind], targets, owned) for kind in KINDS}


def pairwise(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the model and the baselines: name -> kind -> accuracy, 95% interval over users, number of users."""
    data = RecommendationData.load(arguments.data)
    model = load_recommender(arguments.model, device=arguments.device)
    check_same_ids(model, data, arguments.model)
    users, targets, against = pairs_of(data, arguments.split, arguments.encoder, arguments.seed, arguments.max_users)
    histories = data.histories(*arguments.test_history.split("+"))
    recommenders = {name: fit_baseline(name, data, seed=arguments.seed) for name in arguments.baselines}
    recommenders[system_of(model).title] = model
    table: dict[str, Any] = {}
    for name, one in recommenders.items():
        if not hasattr(one, "score_histories"):
            raise InputError(f"{name} does not score all items, which pairs need; leave it out")
        parts: dict[str, list[npt.NDArray[np.float64]]] = {kind: [] for kind in KINDS}
        for start in tqdm(range(0, len(users), arguments.batch_size), desc=name):
            rows = np.arange(start, min(start + arguments.batch_size, len(users)))
            scores = one.score_histories(users[rows], select_users(histories, users[rows]))
            for kind in KINDS:
                parts[kind].append(wins(scores, targets[rows], against[kind][rows]))
        table[name] = {}
        for kind in KINDS:
            won = np.concatenate(parts[kind])
            won = won[~np.isnan(won)]
            if not len(won):
                raise InputError(f"no true item has a {kind} negative; use data with more texts or users")
            table[name][kind] = [float(won.mean()), *bootstrap_interval(won), len(won)]
    return table


def as_markdown(table: dict[str, Any]) -> str:
    """Return the accuracies in percent as a Markdown table."""
    lines = [f"| model | {' | '.join(KINDS)} |", "|---" * (1 + len(KINDS)) + "|"]
    for name, row in table.items():
        cells = [
            f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}], {users} users" for mean, low, high, users in row.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(prog="pairwise_accuracy.py", description=__doc__)
    flags.add_argument("--model", required=True, help="folder or Hub name of a finetuned or aligned model")
    flags.add_argument("--data", required=True, help="data folder written by `cllm4rec prepare`")
    flags.add_argument("--split", choices=["validation", "test"], default="test", help="split with the true items")
    flags.add_argument("--test-history", choices=["train", "train+validation"], default="train", help="input history")
    flags.add_argument("--baselines", nargs="*", default=["popularity"], help="baselines of `cllm4rec evaluate`")
    flags.add_argument("--encoder", default=TFIDF, help="text vectors for the language negatives, such as minilm")
    flags.add_argument("--max-users", type=int, help="a fixed random sample of so many users (default: all)")
    flags.add_argument("--batch-size", type=int, default=32, help="users per batch")
    flags.add_argument("--seed", type=int, default=0, help="of the random negatives and of the baselines")
    flags.add_argument("--device", default="cpu", help="torch device")
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def work() -> None:
        table = pairwise(arguments)
        if arguments.json:
            print_json(table)
        else:
            print(as_markdown(table))

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
