"""What is measured: the setting that all models share, and one job for each model and seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from modeling_cllm4rec.core.errors import ExistingFileError, InputError, MissingFileError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import METRICS, parse_metrics
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.training.loop import data_fingerprint

Case = Literal["everyone", "unseen-people"]
Kind = Literal["quality", "ablation"]

SETTING_FILE = "protocol.json"
FOLDERS = ("jobs", "per_user", "tuning", "logs", "plots", "runs", "data")
ORDERED_SPLITS = ("leave-one-out", "temporal")
METRICS_BY_ORDER = {True: ("recall@10", "recall@20", "ndcg@10"), False: ("recall@20", "recall@40", "ndcg@100")}
"""Default metrics of data that is split by time, and of data that is not."""


class Condition(NamedTuple):
    """One way to ask and to rank.

    Attributes:
        test_history: the interactions that a model is given, as in `evaluate`.
        mask: the interactions that may not be recommended.
        negatives: 0 ranks the full catalogue; n ranks the true items among n random unseen ones.

    >>> Condition("train", "train+validation").key
    'train-masked-train-validation'
    """

    test_history: str
    mask: str
    negatives: int = 0

    @property
    def key(self) -> str:
        """Its name in file names."""
        sampled = f"-sampled-{self.negatives}" if self.negatives else ""
        return f"{self.test_history}-masked-{self.mask}".replace("+", "-") + sampled


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings that all models of a report folder share; numbers of different settings are never put in one table.

    Attributes:
        kind: a comparison of models, or of variants of one recipe.
        dataset: name of the data folder.
        splitting: how it was filtered and split.
        data_sha256: of its ids, texts and interactions.
        statistics: counts of the data folder.
        metrics: of the tables, the first one also of slices and of plots of cost.
        conditions: the protocols.
        max_users: evaluate a fixed random sample of so many users.
        hold_out_users: share of users held out of training; 0 for none.
        tune: trials of the search for a baseline's settings; 0 takes them from the recipe.
        tune_metric: what the search maximizes on validation.
        epochs_share: share of the recipe's epochs that language models are trained for.
        recipe: of an ablation, the recipe whose variants are compared, by stage.
        same_as_recipe: variants that change nothing in it, and are not run again.
    """

    kind: Kind
    dataset: str
    splitting: str
    data_sha256: str
    statistics: dict[str, int | float]
    metrics: tuple[str, ...]
    conditions: tuple[Condition, ...]
    max_users: int | None = None
    hold_out_users: float = 0.0
    tune: int = 0
    tune_metric: str = ""
    epochs_share: float = 1.0
    recipe: dict[str, Any] | None = None
    same_as_recipe: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `protocol.json`."""
        write_json(folder / SETTING_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> BenchmarkConfig:
        """Read `protocol.json`.

        Raises:
            MissingFileError: it is not there.
            InputError: it is no such file.
        """
        path = folder / SETTING_FILE
        if not path.is_file():
            raise MissingFileError(f"{folder} is no report folder: it has no {SETTING_FILE}; make one with benchmark quality")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); choose another folder, or pass --overwrite") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchmarkConfig:
        """Return the setting whose fields were written as JSON."""
        lists = {name: tuple(values[name]) for name in ("metrics", "same_as_recipe")}
        return cls(**{**values, **lists, "conditions": tuple(Condition(*one) for one in values["conditions"])})


@dataclass(frozen=True)
class Job:
    """One model with one seed, trained once and measured under every condition, in a process of its own.

    Attributes:
        model: name of its row.
        system: how it is made: `"baseline"`, the name of a recipe, or `"folder"` for a trained model.
        seed: start of all random numbers of its training.
        case: the evaluated users: `everyone`, or `unseen-people`, the users held out of training.
        recipe: of a baseline `{"name", "settings"}`; of a language model the settings of its stages, by stage; of a trained
            folder `{"path", "sha256", "settings"}`, the last ones those of its training.
        anonymous: the model is not given the user's index.
        about: what it is, in a few words.
        chosen: how its settings were chosen, in words.
        command: what runs this job alone.
    """

    model: str
    system: str
    seed: int
    recipe: dict[str, Any]
    case: Case = "everyone"
    anonymous: bool = False
    about: str = ""
    chosen: str = ""
    command: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Its name in file names."""
        return f"{file_name(self.model)}-seed{self.seed}" + ("" if self.case == "everyone" else f"-{self.case}")

    def fingerprint(self, setting: BenchmarkConfig) -> str:
        """SHA-256 of all that its numbers depend on: recipe, seed, data, protocol."""
        values = {**dataclasses.asdict(self), "setting": dataclasses.asdict(setting)}
        del values["command"], values["about"], values["chosen"]
        if self.system == "folder":  # identified by its content, not by its path
            values["recipe"] = {"sha256": self.recipe["sha256"]}
        return fingerprint(values)


def training_fingerprint(job: Mapping[str, Any]) -> str:
    """SHA-256 of what all seeds of a row must share: how a job's model comes about, but for the seed.

    Args:
        job: the fields of a `Job`.
    """
    recipe = job["recipe"]
    return fingerprint({**{name: job[name] for name in ("system", "anonymous")}, "settings": recipe.get("settings", recipe)})


def make_setting(
    data: RecommendationData,
    kind: Kind = "quality",
    metrics: tuple[str, ...] | None = None,
    test_history: str | None = None,
    mask_validation: str = "no",
    sampled_negatives: int = 0,
    **values: Any,
) -> BenchmarkConfig:
    """Return the setting that flags ask for, checked against the data.

    Args:
        metrics: None takes those that fit the split.
        test_history: `train`, `train+validation` or `both`; None takes the latter for data that is split by time.
        mask_validation: whether validation items may be recommended where they are not given: `no`, `yes` or `both`.
        sampled_negatives: n measures everything a second time, among n random items.
        values: other fields of `BenchmarkConfig`.

    Raises:
        InputError: a value that is not allowed, a metric of more items than there are, or no metric of single users.
    """
    ordered = data.info["protocol"]["split"] in ORDERED_SPLITS
    metrics = metrics or METRICS_BY_ORDER[ordered]
    requests = parse_metrics(metrics, data.num_items)
    if requests[0].metric == "coverage":
        raise InputError(f"metrics begins with {metrics[0]}; the first one must be a mean over users: {', '.join(METRICS[:-1])}")
    test_history = test_history or ("train+validation" if ordered else "train")
    if sampled_negatives < 0:
        raise InputError(f"sampled_negatives is {sampled_negatives}; it must be 1 or more, or left out")
    ways = conditions(test_history, mask_validation)
    sampled = [way._replace(negatives=sampled_negatives) for way in ways] if sampled_negatives else []
    for name, least in (("tune", 0), ("max_users", 1)):
        if values.get(name) is not None and values[name] < least:
            raise InputError(f"{name} is {values[name]}; it must be {least} or more")
    if not 0 < values.get("epochs_share", 1.0) <= 1:
        raise InputError(f"epochs_share is {values['epochs_share']}; it must lie above 0 and be at most 1")
    values["tune_metric"] = values.get("tune_metric") or metrics[0]
    parse_metrics(values["tune_metric"].split("+"), data.num_items)
    return BenchmarkConfig(
        kind=kind,
        dataset=data.folder.resolve().name,
        splitting=data.info["protocol"]["line"],
        data_sha256=data_fingerprint(data),
        statistics=dict(data.info["statistics"]),
        metrics=tuple(metrics),
        conditions=(*ways, *sampled),
        **values,
    )


def selection_of(metrics: Sequence[str]) -> str:
    """Return the metric that baselines stop early by, so that all models of a report are chosen alike: that of a system's epochs
    if it is reported, otherwise the first metric.

    >>> selection_of(["recall@20", "recall@40", "ndcg@100"]), selection_of(["recall@5", "ndcg@20"])
    ('recall@20+recall@40+ndcg@100', 'recall@5')
    """
    for chosen in (system.selection for system in SYSTEMS.values()):
        if set(chosen) <= set(metrics):
            return "+".join(chosen)
    return metrics[0]


def conditions(test_history: str, mask_validation: str) -> tuple[Condition, ...]:
    """Return the protocols that are compared.

    Raises:
        InputError: a value that is not allowed.

    >>> conditions("both", "no")[1]
    Condition(test_history='train+validation', mask='train+validation', negatives=0)
    """
    for name, value, allowed in (
        ("test_history", test_history, ("train", "train+validation", "both")),
        ("mask_validation", mask_validation, ("no", "yes", "both")),
    ):
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    given = ["train", "train+validation"] if test_history == "both" else [test_history]
    masks = {"no": ["train"], "yes": ["train+validation"], "both": ["train", "train+validation"]}[mask_validation]
    found = [Condition(history, mask) for history in given for mask in (masks if history == "train" else [history])]
    return tuple(found)


def claim(folder: Path, setting: BenchmarkConfig) -> None:
    """Make a report folder, or go on in one of the same setting.

    Raises:
        ExistingFileError: the folder holds something else.
        InputError: it is the report of other data or of another protocol; the message says what differs.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / SETTING_FILE).is_file()):
        raise ExistingFileError(f"output: {folder} is there and is no report folder; choose another --output")
    if (folder / SETTING_FILE).is_file():
        there, here = (dataclasses.asdict(one) for one in (BenchmarkConfig.load(folder), setting))
        if there["data_sha256"] != here["data_sha256"]:
            raise InputError(
                f"output: {folder} is a report of other data ({there['dataset']}: {there['splitting']}) than "
                f"{here['dataset']} ({here['splitting']}); choose another --output, or pass --overwrite"
            )
        changed = {key: (there[key], value) for key, value in here.items() if there[key] != value and key != "dataset"}
        if changed:
            raise InputError(
                f"output: {folder} was measured under another protocol (then, now): {changed}; numbers of both cannot share "
                "one table: choose another --output, or pass --overwrite"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    setting.save(folder)


def fingerprint(values: Mapping[str, Any]) -> str:
    """SHA-256 of values as JSON.

    >>> fingerprint({"b": 1, "a": (2,)}) == fingerprint({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_name(name: str) -> str:
    """Return a name for files: letters, digits, dots and hyphens stay.

    >>> file_name("lambda_c=0.1")
    'lambda_c-0.1'
    """
    return re.sub(r"[^\w.-]+", "-", name)


def shown(path: str | Path) -> str:
    """Return a path as a report shows it: relative if it is below the working directory, otherwise the last name only.

    >>> shown("/home/ann/data/beauty"), shown("data/beauty"), shown(Path.cwd() / "runs" / "beauty")
    ('beauty', 'data/beauty', 'runs/beauty')
    """
    place = Path(os.path.abspath(path))  # links are not followed: a data folder may be one
    return place.relative_to(Path.cwd()).as_posix() if place.is_relative_to(Path.cwd()) else place.name


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
