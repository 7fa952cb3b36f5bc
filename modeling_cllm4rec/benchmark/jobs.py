"""The configuration that all models of a report share, and the jobs: one for each model and seed."""

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
from modeling_cllm4rec.corpora.atomic_files import atomic_file, check_output_folder
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import METRICS, parse_metrics
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.training.run_folder import data_fingerprint

UserGroup = Literal["everyone", "unseen-people"]
"""Evaluated users: all users of the data, or the users held out of training. The names are part of saved files."""
Kind = Literal["quality", "ablation"]

CONFIG_FILE = "protocol.json"
HYBRID_OF = "hybrid"
"""Key in the recipe of a job: linear baselines that are added to the trained model, and their settings."""
FOLDERS = ("jobs", "per_user", "tuning", "logs", "plots", "runs", "data")
ORDERED_SPLITS = ("leave-one-out", "temporal")
METRICS_BY_ORDER = {True: ("recall@10", "recall@20", "ndcg@10"), False: ("recall@20", "recall@40", "ndcg@100")}
"""Default metrics for splits by time (True) and for other splits."""


class Condition(NamedTuple):
    """A condition of the evaluation.

    Attributes:
        test_history: interactions in the input of a model, as in `evaluate`.
        mask: interactions that are excluded from the ranking.
        negatives: 0 ranks the full catalogue; n ranks the true items among n random unseen items.

    >>> Condition("train", "train+validation").key
    'train-masked-train-validation'
    """

    test_history: str
    mask: str
    negatives: int = 0

    @property
    def key(self) -> str:
        """Name in file names."""
        sampled = f"-sampled-{self.negatives}" if self.negatives else ""
        return f"{self.test_history}-masked-{self.mask}".replace("+", "-") + sampled


@dataclass(frozen=True)
class BenchmarkConfig:
    """Configuration that all models of a report folder share; numbers of different configurations never share a table.

    Attributes:
        kind: a comparison of models, or of variants of one recipe.
        dataset: name of the data folder.
        splitting: description of the filters and of the split.
        data_sha256: SHA-256 of ids, texts and interactions.
        statistics: counts of the data folder.
        metrics: metrics of the tables; the first one is also the metric of slices and of plots of cost.
        conditions: conditions of the evaluation.
        max_users: size of a fixed random sample of users to evaluate; None evaluates all users.
        hold_out_users: share of users held out of training; 0 for none.
        tune: trials of the search for a baseline's settings; 0 takes the settings of the YAML file.
        tune_metric: validation metric that the search maximizes.
        epochs_share: share of the recipe's epochs for the training of language models.
        recipe: of an ablation, the recipe whose variants are compared, by stage.
        same_as_recipe: variants that change nothing in the recipe, which are not run.
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
        write_json(folder / CONFIG_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> BenchmarkConfig:
        """Read `protocol.json`.

        Raises:
            MissingFileError: there is no such file.
            InputError: the file cannot be read.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise MissingFileError(f"{folder} is no report folder: it has no {CONFIG_FILE}; make one with benchmark quality")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); choose another folder, or pass overwrite=True") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchmarkConfig:
        """Return the configuration with these fields, as read from JSON."""
        lists = {name: tuple(values[name]) for name in ("metrics", "same_as_recipe")}
        return cls(**{**values, **lists, "conditions": tuple(Condition(*condition) for condition in values["conditions"])})


@dataclass(frozen=True)
class Job:
    """A model with a seed: trained once and measured under every condition, in a separate process.

    Attributes:
        model: name of the row.
        system: `"baseline"`, the name of a recipe, or `"folder"` for a trained model.
        seed: start of all random numbers of the training.
        case: the evaluated users.
        recipe: of a baseline `{"name", "settings"}`, with the hashes `{"sha256": {name: hash}}` of classes and files of the
            user's own; of a language model the settings of its stages, by stage, and those of `HYBRID_OF`; of a trained folder
            `{"path", "sha256", "settings"}` with the settings of its training.
        anonymous: whether the model is given no user indices.
        about: description in a few words.
        chosen: how the settings were chosen, in words.
        command: command line of this job.
    """

    model: str
    system: str
    seed: int
    recipe: dict[str, Any]
    case: UserGroup = "everyone"
    anonymous: bool = False
    about: str = ""
    chosen: str = ""
    command: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Name in file names."""
        return f"{file_name(self.model)}-seed{self.seed}" + ("" if self.case == "everyone" else f"-{self.case}")

    def fingerprint(self, config: BenchmarkConfig) -> str:
        """Return the SHA-256 of everything that determines the numbers: recipe, seed, data, protocol."""
        # "setting" is the key of earlier versions: another one would make every finished result run again.
        values = {**dataclasses.asdict(self), "setting": dataclasses.asdict(config)}
        del values["command"], values["about"], values["chosen"]
        if self.system == "folder":  # identified by its content, not by its path
            values["recipe"] = {"sha256": self.recipe["sha256"]}
        return fingerprint(values)


def training_fingerprint(job: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything that the seeds of a row must share, which is the training without its seed.

    Args:
        job: the fields of a `Job`.
    """
    recipe = job["recipe"]
    values = {**{name: job[name] for name in ("system", "anonymous")}, "settings": recipe.get("settings", recipe)}
    if job["system"] == "baseline" and "sha256" in recipe:  # a class or file of a user's own
        values["sha256"] = recipe["sha256"]
    return fingerprint(values)


def make_config(
    data: RecommendationData,
    kind: Kind = "quality",
    metrics: tuple[str, ...] | None = None,
    test_history: str | None = None,
    mask_validation: str = "no",
    sampled_negatives: int = 0,
    **values: Any,
) -> BenchmarkConfig:
    """Return a configuration that is checked against the data.

    Args:
        metrics: None takes the default metrics of the split.
        test_history: `train`, `train+validation` or `both`; None takes `train+validation` for splits by time, otherwise `train`.
        mask_validation: whether validation items are excluded if they are not in the input: `no`, `yes` or `both`.
        sampled_negatives: n also measures every condition among n random items.
        values: other fields of `BenchmarkConfig`.

    Raises:
        InputError: a value is not allowed, a metric needs more items than the catalogue has, or the first metric is no mean over
            users.
    """
    ordered = data.info["protocol"]["split"] in ORDERED_SPLITS
    metrics = metrics or METRICS_BY_ORDER[ordered]
    requests = parse_metrics(metrics, data.num_items)
    if requests[0].metric == "coverage":
        raise InputError(f"metrics begins with {metrics[0]}; the first one must be a mean over users: {', '.join(METRICS[:-1])}")
    test_history = test_history or ("train+validation" if ordered else "train")
    if sampled_negatives < 0:
        raise InputError(f"sampled_negatives is {sampled_negatives}; it must be 1 or more, or left out")
    full = conditions(test_history, mask_validation)
    sampled = [condition._replace(negatives=sampled_negatives) for condition in full] if sampled_negatives else []
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
        conditions=(*full, *sampled),
        **values,
    )


def selection_of(metrics: Sequence[str]) -> str:
    """Return the metric of early stopping of baselines.

    It is the selection metric of a system if that is reported, so that all models of a report are selected by one metric, and
    the first metric otherwise.

    >>> selection_of(["recall@20", "recall@40", "ndcg@100"]), selection_of(["recall@5", "ndcg@20"])
    ('recall@20+recall@40+ndcg@100', 'recall@5')
    """
    for selection in (system.selection for system in SYSTEMS.values()):
        if set(selection) <= set(metrics):
            return "+".join(selection)
    return metrics[0]


def conditions(test_history: str, mask_validation: str) -> tuple[Condition, ...]:
    """Return the conditions of full ranking.

    Raises:
        InputError: a value is not allowed.

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
    # Items of the input are always masked, so a history with validation items has one mask.
    return tuple(Condition(history, mask) for history in given for mask in (masks if history == "train" else [history]))


def claim(folder: Path, config: BenchmarkConfig) -> None:
    """Create a report folder, or continue in one of the same configuration.

    Raises:
        ExistingFileError: the folder is no report folder.
        InputError: it is the report of other data or of another protocol; the differences are named.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file()):
        raise ExistingFileError(f"output: {folder} exists and is no report folder; choose another output")
    if (folder / CONFIG_FILE).is_file():
        there, here = (dataclasses.asdict(values) for values in (BenchmarkConfig.load(folder), config))
        if there["data_sha256"] != here["data_sha256"]:
            raise InputError(
                f"output: {folder} is a report of other data ({there['dataset']}: {there['splitting']}) than "
                f"{here['dataset']} ({here['splitting']}); choose another output, or pass overwrite=True"
            )
        changed = {key: (there[key], value) for key, value in here.items() if there[key] != value and key != "dataset"}
        if changed:
            raise InputError(
                f"output: {folder} was measured under another protocol (then, now): {changed}; numbers of both cannot share "
                "one table: choose another output, or pass overwrite=True"
            )
        return
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder)


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of values as JSON.

    >>> fingerprint({"b": 1, "a": (2,)}) == fingerprint({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_name(name: str) -> str:
    """Return a name for files of letters, digits, dots, hyphens and underscores; other characters become hyphens.

    >>> file_name("lambda_c=0.1")
    'lambda_c-0.1'
    """
    return re.sub(r"[^\w.-]+", "-", name)


def shown(path: str | Path) -> str:
    """Return a path as a report shows it: relative if it is below the working directory, otherwise the last name only.

    >>> shown("/home/ann/data/beauty"), shown("data/beauty"), shown(Path.cwd() / "runs" / "beauty")
    ('beauty', 'data/beauty', 'runs/beauty')
    """
    absolute = Path(os.path.abspath(path))  # links are not followed, because a data folder may be one
    return absolute.relative_to(Path.cwd()).as_posix() if absolute.is_relative_to(Path.cwd()) else absolute.name


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file that is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
