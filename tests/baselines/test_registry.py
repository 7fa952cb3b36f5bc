"""The table of baselines, and classes of a user's own in place of a name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_cllm4rec.baselines import BASELINES, baseline_settings, fit_baseline, members, tune
from modeling_cllm4rec.baselines.registry import baseline, get_baseline
from modeling_cllm4rec.core.errors import InputError, MissingPackageError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

MODULE = '''
import numpy as np
from modeling_cllm4rec.baselines.registry import baseline

class Weighted:
    """Number of users of an item times a weight."""

    def __init__(self, counts):
        self.counts, self.num_items = counts, len(counts)

    @classmethod
    def fit(cls, data, *, weight=2.0):
        return cls(np.float32(weight) * np.bincount(data.histories("train").items, minlength=data.num_items).astype(np.float32))

    def score_histories(self, user_indices, histories):
        return np.tile(self.counts, (len(histories.indptr) - 1, 1))

class Seeded(Weighted):
    @classmethod
    def fit(cls, data, *, seed=0, weight=1.0):
        made = super().fit(data, weight=weight)
        made.counts += np.random.default_rng(seed).random(len(made.counts), dtype=np.float32)
        return made

class Open(Weighted):
    @classmethod
    def fit(cls, data, **settings):
        assert settings.pop("seed") == 7
        return super().fit(data, **settings)

@baseline("tuned-{tag}", title="Tuned", summary="a test", deterministic=True, space={{"weight": {{"choice": [1.0, 3.0]}}}})
class Tuned(Weighted):
    pass

class Searching:
    decoding = "by hand"

    def __init__(self, num_items):
        self.num_items = num_items

    @classmethod
    def fit(cls, data):
        return cls(data.num_items)

    def rank_histories(self, user_indices, histories, seen, k):
        return np.tile(np.arange(k), (len(histories.indptr) - 1, 1))

class NoFit:
    pass

class InstanceFit:
    def fit(self, data):
        return self

class NoDefault(Weighted):
    @classmethod
    def fit(cls, data, weight):
        return super().fit(data, weight=weight)

class Unscored(Weighted):
    @classmethod
    def fit(cls, data):
        return object()
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module with classes of a user's own."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE.format(tag=name.replace("_", "-")))
    (tmp_path / "broken_module.py").write_text("import a_module_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(BASELINES)
    yield name
    BASELINES.clear()
    BASELINES.update(before)
    sys.modules.pop(name, None)


def test_order_of_rows() -> None:
    first = ["random", "popularity", "itemknn", "ease", "ease-recency", "ials", "multvae", "sasrec", "esasrec"]
    assert list(BASELINES)[: len(first)] == first


def test_the_table_needs_no_heavy_package() -> None:
    """Packages of extras, transformers and peft are imported by the baselines that use them."""
    code = (
        "import sys, modeling_cllm4rec.baselines\n"
        "print(*(name for name in ('implicit', 'peft', 'sentence_transformers', 'transformers') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_a_registered_class_is_known_everywhere(own: str, data: RecommendationData) -> None:
    """Settings, title, summary and search space, and the names of benchmark and evaluate, come from the decorator."""
    from modeling_cllm4rec.benchmark.models import model_names, title
    from modeling_cllm4rec.commands.evaluate import parser

    __import__(own)
    name = next(name for name in BASELINES if name.startswith("tuned-"))
    assert baseline_settings(name) == {"weight": 2.0}
    assert name in model_names() and title(f"{name}+ease") == "Tuned + EASE"
    assert name in parser().format_help().replace("\n", "").replace(" ", "")
    assert tune(name, data, trials=3, progress=False).trials.num_rows == 3
    scores = fit_baseline(name, data, weight=3.0).score_histories(None, histories_from_lists([[0]]))  # type: ignore[union-attr]
    assert np.array_equal(scores[0], 3 * np.bincount(data.histories("train").items, minlength=data.num_items))


def test_rows_that_are_refused() -> None:
    class Other:
        pass

    with pytest.raises(InputError, match="the name 'ease' of a baseline is taken; choose another"):
        baseline("ease", title="x", summary="y")(Other)
    with pytest.raises(InputError, match="the name of a baseline is 'my ease'; it must be of letters, digits and hyphens"):
        baseline("my ease", title="x", summary="y")
    with pytest.raises(InputError, match=r"@baseline\('other', ...\): .*'titel'.*; see the fields of"):
        baseline("other", titel="x", summary="y")(Other)
    assert "other" not in BASELINES


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, data: RecommendationData) -> None:
    monkeypatch.setitem(sys.modules, "implicit", None)
    message = r"the baseline 'ials' needs implicit.*; run: pip install .cllm4rec\[baselines\]., or choose another baseline"
    with pytest.raises(MissingPackageError, match=message):
        fit_baseline("ials", data)
    with pytest.raises(MissingPackageError, match=message):
        BASELINES["ials"].recommender.fit(data)
    fit_baseline("popularity", data)


def test_a_class_by_its_module(own: str, data: RecommendationData) -> None:
    row = get_baseline(f"{own}:Weighted")
    assert (row.title, row.summary, row.deterministic) == (f"{own}:Weighted", "class Weighted", True)
    assert row.source == str(Path(sys.modules[own].__file__ or ""))
    assert baseline_settings(f"{own}:Weighted") == {"weight": 2.0} and not row.space
    report = evaluate(fit_baseline(f"{own}:Weighted", data), data, "test", metrics=["recall@10"], progress=False)
    wanted = evaluate(fit_baseline("popularity", data), data, "test", metrics=["recall@10"], progress=False)
    assert report.metrics == wanted.metrics
    with pytest.raises(InputError, match="has no setting 'wait'; did you mean 'weight'"):
        fit_baseline(f"{own}:Weighted", data, wait=1.0)


def test_a_seed_is_given_to_a_class_that_takes_one(own: str, data: RecommendationData) -> None:
    assert not get_baseline(f"{own}:Seeded").deterministic
    history = histories_from_lists([[0]])
    scores: list[Any] = [fit_baseline(f"{own}:Seeded", data, seed=seed) for seed in (1, 1, 2)]
    first, same, other = (one.score_histories(None, history) for one in scores)
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    assert fit_baseline(f"{own}:Open", data, seed=7, weight=5.0).num_items == data.num_items


def test_a_class_with_the_decorator_has_its_row(own: str) -> None:
    row = get_baseline(f"{own}:Tuned")
    assert (row.title, row.deterministic, list(row.space)) == ("Tuned", True, ["weight"])


def test_a_class_that_ranks_and_one_in_a_sum(own: str, data: RecommendationData) -> None:
    report = evaluate(fit_baseline(f"{own}:Searching", data), data, "test", metrics=["recall@10"], mask="none", progress=False)
    assert report.protocol.decoding == "by hand"
    assert members(f"ease+{own}:Weighted") == ("ease", f"{own}:Weighted")
    assert fit_baseline(f"ease+{own}:Weighted", data).num_items == data.num_items
    with pytest.raises(InputError, match="recommenders has a Searching, which has lists and no scores; a sum needs scores"):
        fit_baseline(f"ease+{own}:Searching", data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere:A",
            "the module 'nowhere' cannot be imported from here, as there is no 'nowhere'; add the folder",
        ),
        ("nowhere.a.b:A", "there is no 'nowhere'"),
        ("OWN.deep:A", "the module '.*deep' cannot be imported from here"),
        ("OWN:Weigthed", "has no 'Weigthed'; did you mean 'Weighted'"),
        ("OWN:NoFit", "has no fit; it must have a classmethod"),
        ("OWN:InstanceFit", "fit is a method of instances; it must be a classmethod"),
        ("OWN:NoDefault", "weight of fit has no default"),
        ("OWN:Unscored", "fit returned a object without num_items and score_histories; it must return an object like"),
        (":A", "'' is no name of a module"),
        ("../a.py:A", "'../a.py' is no name of a module; write package.module:Class, or lists:FILE"),
        ("popularty", r"there is no baseline 'popularty'; did you mean 'popularity'\? \(or package.module:Class"),
    ],
)
def test_classes_that_are_refused(own: str, data: RecommendationData, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_baseline(name.replace("OWN", own), data)


def test_an_error_inside_of_a_module_keeps_its_traceback(own: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        get_baseline("broken_module:A")
