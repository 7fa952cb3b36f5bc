"""The metrics as modules of the `evaluate` library: loaded from their folders, offline."""

import doctest
from pathlib import Path

import evaluate
import pytest
from setuptools import find_packages

from modeling_cllm4rec.evaluation.metrics import METRIC_NAMES, metric_path

PREDICTIONS = [[4, 2, 7], [1, 5]]
REFERENCES = [[7, 9], [1]]

EXPECTED = {
    "recall_at_k": (1 / 2 + 1) / 2,
    "ndcg_at_k": (0.5 / (1 + 0.6309297535714575) + 1) / 2,
    "hit_rate_at_k": 1.0,
    "mrr_at_k": (1 / 3 + 1) / 2,
}


@pytest.fixture
def load(tmp_path):
    """Return a loader of metrics by name, with its files in a folder of the test."""
    return lambda name: evaluate.load(metric_path(name), cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", EXPECTED)
def test_value_by_hand(load, name):
    metric = load(name)
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, k=3)
    assert result == {name: pytest.approx(EXPECTED[name])}


def test_coverage_by_hand(load):
    metric = load("coverage_at_k")
    assert metric.compute(predictions=PREDICTIONS, k=2, num_items=8) == {"coverage_at_k": 0.5}


@pytest.mark.parametrize("name", EXPECTED)
def test_batches_give_the_same(load, name):
    metric = load(name)
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert metric.compute(k=3)[name] == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_users_without_truth_are_counted(load, name):
    metric = load(name)
    with pytest.warns(UserWarning, match="1 of 3 users have no true item"):
        result = metric.compute(predictions=[*PREDICTIONS, [3, 1]], references=[*REFERENCES, []], k=3)
    assert result[name] == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize(("k", "message"), [(0, "k must be at least 1, got 0"), (4, "k is 4, but only 3 items are ranked")])
@pytest.mark.parametrize("name", METRIC_NAMES)
def test_k_must_fit(load, name, k, message):
    inputs = {"predictions": PREDICTIONS, "references": REFERENCES}
    if name == "coverage_at_k":
        inputs = {"predictions": PREDICTIONS, "num_items": 8}
    with pytest.raises(ValueError, match=message):
        load(name).compute(**inputs, k=k)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_documented_example(load, name):
    metric = load(name)
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {"metric": metric}, name, None, 0)
    example.examples = example.examples[1:]  # the first line loads the metric
    assert doctest.DocTestRunner().run(example) == (0, 1)


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of recall_at_k, .*, got 'recall'"):
        metric_path("recall")


def test_an_installed_package_holds_each_module():
    root = Path(metric_path("recall_at_k")).parents[3]
    packages = find_packages(str(root), include=["modeling_cllm4rec*"])
    for name in METRIC_NAMES:
        assert f"modeling_cllm4rec.evaluation.metrics.{name}" in packages
        assert (Path(metric_path(name)) / f"{name}.py").is_file()
