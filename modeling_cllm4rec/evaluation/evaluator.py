"""Evaluation of any recommender that scores or ranks histories: full-catalogue ranking, metrics, intervals, protocol."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast
from typing import Protocol as TypingProtocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from modeling_cllm4rec.core.errors import InputError, nearest
from modeling_cllm4rec.core.processes import shared_out, sum_over_processes
from modeling_cllm4rec.core.top_items import PADDING, top_items
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData
from modeling_cllm4rec.corpora.history_order import is_ordered
from modeling_cllm4rec.evaluation import ranking
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport, SliceResult, comparison_table
from modeling_cllm4rec.evaluation.slices import kept_items, slice_targets

__all__ = ["EvaluationReport", "Recommender", "comparison_table", "evaluate", "select_users", "top_k"]

DEFAULT_METRICS = ("recall@20", "recall@40", "ndcg@100")

SAMPLE_SEED = 0
"""Random seed of a sample of users, the same for every model."""

KEYS_PER_BLOCK = 1 << 22
"""Largest number of sort keys in memory at one time: about 100 MB with copies."""

PerUserMetric = Callable[[ranking.BoolArray, ranking.IntArray, int], ranking.FloatArray]

PER_USER_METRICS: dict[str, PerUserMetric] = {
    "recall": ranking.recall_at_k,
    "ndcg": ranking.ndcg_at_k,
    "hit_rate": ranking.hit_rate_at_k,
    "mrr": ranking.mrr_at_k,
}
METRICS = (*PER_USER_METRICS, "coverage")


class Recommender(TypingProtocol):
    """A recommender that scores the whole catalogue for histories, such as CLLM4Rec, popularity or random."""

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        ...

    def score_histories(self, user_indices: npt.NDArray[np.integer] | None, histories: Histories) -> npt.NDArray[np.float32]:
        """Score all J items for each of (batch,) histories.

        Args:
            user_indices: (batch,) user indices, or None for users without an index.
            histories: item indices of each user's interactions.

        Returns:
            (batch, J) float32, higher is better; the caller may write into it.
        """
        ...


class Searcher(TypingProtocol):
    """A recommender that finds the best items without scoring all items, such as LC-Rec with beam search."""

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        ...

    @property
    def decoding(self) -> str:
        """Description of the search for the protocol."""
        ...

    def rank_histories(
        self, user_indices: npt.NDArray[np.integer] | None, histories: Histories, seen: Histories | None, k: int
    ) -> npt.NDArray[np.int64]:
        """Return the k best unseen items for each of (batch,) histories.

        Returns:
            (batch, k) item indices, best first; -1 where fewer were found, `top_items.NO_ITEM` where the search found a sequence
            that is no item.
        """
        ...


class MetricRequest(NamedTuple):
    """A parsed metric name: `recall@20` is `MetricRequest("recall@20", "recall", 20)`."""

    label: str
    metric: str
    k: int


def evaluate(
    recommender: Recommender | Searcher,
    data: RecommendationData,
    split: str = "validation",
    test_history: str = "train",
    mask: str | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 256,
    progress: bool = True,
    seed: int = 0,
    n_resamples: int = 1000,
    max_users: int | None = None,
    slice_by: Histories | None = None,
    distributed: bool = False,
) -> EvaluationReport:
    """Rank the whole catalogue for each user and compute metrics on the interactions of a split.

    Users without interactions in `split` have no metric. They are not scored, and a warning and the protocol report their number.
    Users with an empty history are scored like all others. Where the recommender gives no item, as LC-Rec without a history, all
    metrics of the user are 0; the report's `users_without_list` and a warning report their number.
    Invalid, duplicate or already-seen items in the list of a searcher count as misses and keep their rank. The report's
    `illegal_items` and a warning report their number.

    Args:
        recommender: recommender to evaluate.
        data: the prepared data folder.
        split: interactions to predict, `validation` or `test`.
        test_history: input of the recommender, `train` or `train+validation` (the latter for `test` only).
        mask: items excluded from the ranking, `train`, `train+validation` or `none`; by default the given histories.
        metrics: `recall@k`, `ndcg@k`, `hit_rate@k`, `mrr@k`, `coverage@k` for any k up to the catalogue's size.
        batch_size: users per batch. Memory grows with `batch_size` x items where a recommender returns the scores of all items;
            models of this package rank some items at a time.
        progress: show a progress bar.
        seed: random seed of the bootstrap.
        n_resamples: resamples for the 95% intervals; 0 computes no intervals, as in model selection.
        max_users: size of the random sample of users to evaluate, the same for equal data; None evaluates all users.
        slice_by: the training histories of the recommender, usually `data.histories("train")`, to also report metrics over the
            true items of one kind, see `slices.slice_targets`; None reports no slices.
        distributed: whether the processes of `torch.distributed` share the users out among them; all of them must call, and get
            the same report.

    Returns:
        Means, intervals, protocol, values per user, and slices.

    Raises:
        InputError: an argument is out of range, a k exceeds the catalogue size, the recommender has another catalogue or
            returns unusable scores, or no user has interactions in `split`.
    """
    _check_positive("batch_size", batch_size)
    if n_resamples < 0:
        raise InputError(f"n_resamples must be 0 (no intervals) or more, got {n_resamples}")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more")
    if recommender.num_items != data.num_items:
        raise InputError(
            f"the recommender scores {recommender.num_items} items, but the data has {data.num_items}; "
            "evaluate on the data folder that the recommender was made for"
        )
    requests = parse_metrics(metrics, data.num_items)
    protocol, users, truth = _setting(data, split, test_history, test_history if mask is None else mask)
    if max_users is not None:
        _check_positive("max_users", max_users)
    if max_users is not None and max_users < len(users):
        protocol = dataclasses.replace(protocol, users=max_users, sample=f"a random sample of {len(users)}, seed {SAMPLE_SEED}")
        users = np.sort(np.random.default_rng(SAMPLE_SEED).choice(users, max_users, replace=False))
    if not hasattr(recommender, "score_histories"):
        protocol = dataclasses.replace(protocol, decoding=recommender.decoding)
    histories = data.histories(*test_history.split("+"))
    seen = None if protocol.masked == "none" else data.histories(*protocol.masked.split("+"))

    start = time.perf_counter()
    per_user = {request.label: np.zeros(len(users)) for request in requests if request.metric != "coverage"}
    shown = {request.label: np.zeros(data.num_items, dtype=bool) for request in requests if request.metric == "coverage"}
    largest_k = max(request.k for request in requests)
    illegal_items = users_without_list = 0
    parts: list[tuple[str, str, Histories]] = []
    if slice_by is not None:
        marked = slice_targets(
            select_users(truth, users), select_users(histories, users), slice_by, data.num_items, ordered=is_ordered(data)
        )
        parts = [(name, label, kept_items(select_users(truth, users), marks)) for name, label, marks in marked]
    per_part = [{label: np.full(len(users), np.nan) for label in per_user} for _ in parts]
    with tqdm(total=len(users), desc=f"evaluating {split}", unit="user", disable=not progress) as bar:
        batches = list(_batches_by_length(np.diff(histories.indptr)[users], batch_size))
        for rows, counts in shared_out(batches) if distributed else zip(batches, itertools.repeat(True), strict=False):
            batch = users[rows]
            given = select_users(histories, batch)
            ranked, illegal = _rank(recommender, batch, given, None if seen is None else select_users(seen, batch), largest_k)
            if not counts:
                continue
            illegal_items += illegal
            users_without_list += int((ranked == PADDING).all(axis=1).sum())
            batch_truth = select_users(truth, batch)
            hit, sizes = ranking.hits(ranked, batch_truth), ranking.truth_sizes(batch_truth)
            for label, metric, k in requests:
                if metric == "coverage":
                    shown[label] |= ranking.items_shown(ranked, data.num_items + largest_k, k)[: data.num_items]
                else:
                    per_user[label][rows] = PER_USER_METRICS[metric](hit, sizes, k)
            for values, (_, _, targets) in zip(per_part, parts, strict=True):
                batch_targets = select_users(targets, rows)
                hit, sizes = ranking.hits(ranked, batch_targets), ranking.truth_sizes(batch_targets)
                for label, metric, k in requests:
                    if metric != "coverage":
                        values[label][rows] = PER_USER_METRICS[metric](hit, sizes, k)
            bar.update(len(batch))
    if distributed:
        # Each process has filled the rows of its own users.
        per_user = {label: sum_over_processes(values) for label, values in per_user.items()}
        shown = {label: sum_over_processes(values) > 0 for label, values in shown.items()}
        illegal_items, users_without_list = (int(count) for count in sum_over_processes([illegal_items, users_without_list]))
        for values in per_part:
            for label, found in values.items():
                without_targets = sum_over_processes(~np.isnan(found)) == 0
                values[label] = np.where(without_targets, np.nan, sum_over_processes(np.nan_to_num(found)))
    seconds = time.perf_counter() - start

    means = {
        label: float(shown[label].mean()) if metric == "coverage" else float(per_user[label].mean())
        for label, metric, _ in requests
    }
    intervals = {}
    if n_resamples:
        intervals = {label: bootstrap_interval(values, n_resamples=n_resamples, seed=seed) for label, values in per_user.items()}
    if illegal_items:
        warnings.warn(f"{illegal_items} recommendations are invalid, duplicate or seen items; they count as misses", stacklevel=2)
    if users_without_list:
        warnings.warn(
            f"{users_without_list} of {len(users)} users got no items; they have 0 in all metrics",
            stacklevel=2,
        )
    counted = None if hasattr(recommender, "score_histories") else illegal_items
    slices: dict[str, dict[str, SliceResult]] = {}
    for values, (name, label, targets) in zip(per_part, parts, strict=True):
        own = {metric: float(np.nanmean(found)) for metric, found in values.items()}
        with_targets = int((np.diff(targets.indptr) > 0).sum())
        slices.setdefault(name, {})[label] = SliceResult(len(targets.items), with_targets, own, values)
    return EvaluationReport(
        protocol,
        means,
        intervals,
        seconds,
        seed,
        n_resamples,
        users,
        per_user,
        illegal_items=counted,
        users_without_list=users_without_list,
        slices=slices,
        dataset_revision=data.revision,
    )


def _rank(
    recommender: Recommender | Searcher,
    users: npt.NDArray[np.int64],
    histories: Histories,
    seen: Histories | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the (batch, k) best unseen items, -1 where there are fewer, and the number of illegal items among them.

    Illegal items are replaced by distinct numbers from J on: they keep their rank and match no true item.

    Raises:
        InputError: the recommender returned another shape.
    """
    rows, num_items = len(users), recommender.num_items
    if getattr(recommender, "scores_catalogue", False):  # a model, which ranks in pieces of the catalogue
        return cast(Any, recommender).rank_histories(users, histories, seen, k), 0
    if hasattr(recommender, "score_histories"):
        scores = recommender.score_histories(users, histories)
        if np.shape(scores) != (rows, num_items):
            raise InputError(
                f"score_histories returned shape {np.shape(scores)} for {rows} users and {num_items} items; "
                f"it must be ({rows}, {num_items})"
            )
        return top_k(scores, k, seen)[0], 0
    ranked = np.asarray(recommender.rank_histories(users, histories, seen, k))
    if ranked.shape != (rows, k):
        raise InputError(f"rank_histories returned shape {ranked.shape} for {rows} users and k {k}; it must be ({rows}, {k})")
    illegal = ranking.illegal_items(ranked, num_items, seen)
    return np.where(illegal, num_items + np.arange(k), ranked), int(illegal.sum())


def top_k(
    scores: npt.NDArray[np.floating] | torch.Tensor, k: int, seen: Histories | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the k best items of each row; of equal scores the lower item index comes first.

    Rows are processed in blocks by `top_items`, which the model's own recommendations also use.

    Args:
        scores: (batch, J) in 32 or 16 bits, array or tensor on any device, not modified; -inf is never recommended.
        k: number of items.
        seen: (batch,) histories whose items are excluded.

    Returns:
        (batch, k) item indices and (batch, k) scores, best first; -1 and -inf where a row has fewer than k items
        left.

    Raises:
        InputError: if the scores are of another shape or type or hold NaN, k is not in [1, J], or `seen` does not fit.

    >>> indices, values = top_k(np.array([[0.5, 2.0, 2.0, 1.0]], dtype=np.float32), k=2)
    >>> indices.tolist(), values.tolist()
    ([[1, 2]], [[2.0, 2.0]])
    """
    array = _as_float32(scores)
    num_items = array.shape[1]
    _check_positive("k", k)
    if k > num_items:
        raise InputError(f"k is {k}, but there are {num_items} items; choose k <= {num_items}")
    if seen is not None:
        _check_seen(seen, len(array), num_items)
    indices = np.empty((len(array), k), dtype=np.int64)
    values = np.empty((len(array), k), dtype=np.float32)
    rows_at_once = max(1, KEYS_PER_BLOCK // num_items)
    for start in range(0, len(array), rows_at_once):
        rows = np.arange(start, min(start + rows_at_once, len(array)))
        block = array[rows]  # a copy
        if np.isnan(block).any():
            raise InputError(f"scores hold NaN, first in row {rows[np.isnan(block).any(axis=1)][0]}; check the model")
        if seen is not None:
            block_seen = select_users(seen, rows)
            block[np.repeat(np.arange(len(rows)), np.diff(block_seen.indptr)), block_seen.items] = -np.inf
        best, found = top_items(torch.from_numpy(block), k)
        indices[rows], values[rows] = best.numpy(), found.numpy()
    return indices, values


def parse_metrics(metrics: Sequence[str], num_items: int) -> list[MetricRequest]:
    """Parse metric names such as `recall@20`.

    Raises:
        InputError: if there is none, one is unknown, given twice or has no whole number k in [1, num_items].

    >>> parse_metrics(["recall@20"], num_items=50)
    [MetricRequest(label='recall@20', metric='recall', k=20)]
    """
    if isinstance(metrics, str) or not metrics:
        raise InputError(f"metrics must be a non-empty list of names such as 'recall@20', got {metrics!r}")
    requests = []
    for label in metrics:
        metric, _, number = label.partition("@")
        if metric not in METRICS:
            hint = nearest(label, [f"{name}@{number or 'k'}" for name in METRICS], "choose one of them")
            raise InputError(f"unknown metric {label!r}: allowed are {', '.join(f'{name}@k' for name in METRICS)}; {hint}")
        if not (number.isascii() and number.isdigit() and int(number) > 0):
            raise InputError(f"metric {label!r} needs a whole number of at least 1 after the @, as in {metric}@20")
        k = int(number)
        if k > num_items:
            raise InputError(f"{label} needs {k} items, the catalogue has {num_items}; choose a smaller k")
        requests.append(MetricRequest(label, metric, k))
    if len({(metric, k) for _, metric, k in requests}) < len(requests):
        raise InputError(f"metrics names one twice: {list(metrics)}")
    return requests


def select_users(histories: Histories, users: npt.NDArray[np.integer]) -> Histories:
    """Return the histories of (batch,) users, in the order of `users`.

    >>> histories = Histories(np.array([0, 2, 3]), np.array([7, 4, 5], dtype=np.int32))
    >>> select_users(histories, np.array([1, 0])).items.tolist()
    [5, 7, 4]
    """
    starts = np.asarray(histories.indptr)[users]
    lengths = np.asarray(histories.indptr)[users + 1] - starts
    indptr = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    positions = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return Histories(indptr, histories.items[positions])


def _setting(
    data: RecommendationData, split: str, test_history: str, mask: str
) -> tuple[Protocol, npt.NDArray[np.int64], Histories]:
    """Return the protocol, the users with interactions in the split, and the true items of all users."""
    draft = Protocol(
        dataset=data.name,
        splitting=data.info["protocol"]["line"],
        split=split,
        test_history=test_history,
        masked=mask,
        items=data.num_items,
        users=0,
        excluded_users=0,
    )
    truth = data.histories(draft.split)
    users = np.flatnonzero(ranking.truth_sizes(truth))
    excluded = data.num_users - len(users)
    if not len(users):
        raise InputError(f"no user has interactions in the {split} split; split must be one that the data folder holds")
    if excluded:
        warnings.warn(f"{excluded} of {data.num_users} users have no {split} items and are excluded", stacklevel=3)
    return dataclasses.replace(draft, users=len(users), excluded_users=excluded), users, truth


def _batches_by_length(lengths: npt.NDArray[np.int64], batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row numbers in batches of similar history length.

    Similar lengths need little padding. The longest come first, so that a lack of memory shows in the first batch.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _as_float32(scores: npt.NDArray[np.floating] | torch.Tensor) -> npt.NDArray[np.float32]:
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().to("cpu")
        scores = (scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores).numpy()
    array: npt.NDArray[np.floating] = np.asarray(scores)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype != np.float32:
        raise InputError(f"scores must be of 32 or 16 bits, got {array.dtype}; convert them with .astype(numpy.float32)")
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(f"scores must be (batch, items), got shape {array.shape}")
    return array


def _check_seen(seen: Histories, rows: int, num_items: int) -> None:
    if len(seen.indptr) != rows + 1:
        raise InputError(f"seen has {len(seen.indptr) - 1} histories for {rows} rows of scores; both need one per user")
    if seen.items.size and not 0 <= seen.items.min() <= seen.items.max() < num_items:
        raise InputError(f"seen has item indices from {seen.items.min()} to {seen.items.max()}, allowed are 0 to {num_items - 1}")


def _check_positive(field: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{field} must be at least 1, got {value}")
