"""A teacher's choices: values by hand, what is left out, and whether a model that listens comes nearer to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.ease import EASERecommender
from modeling_cllm4rec.baselines.soft_targets import Teacher, fitted_teacher
from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments
from modeling_cllm4rec.cllm4rec.finetuning import finetune
from modeling_cllm4rec.corpora.data_folder import Histories, RecommendationData

MakeFinetune = Callable[..., FinetuneArguments]


def linear(rows: list[list[float]]) -> EASERecommender:
    return EASERecommender(np.array(rows, dtype=np.float32))


def test_shares_by_hand() -> None:
    teacher = Teacher(linear([[0, 4, 2, -1], [9, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), num_items=2)
    items, shares = teacher.soft_targets([np.array([0]), np.array([0, 1]), np.array([2])])
    assert items.tolist() == [[1, 2], [2, -100], [-100, -100]]  # neither items of the history nor scores that are not positive
    np.testing.assert_allclose(shares, [[4 / 6, 2 / 6], [1, 0], [0, 0]], rtol=1e-6)
    assert (items.dtype, shares.dtype) == (np.int64, np.float32)


def test_a_power_prefers_the_best() -> None:
    items, shares = Teacher(linear([[0, 4, 2], [0, 0, 0], [0, 0, 0]]), power=2.0).soft_targets([np.array([0])])
    np.testing.assert_allclose(shares, [[16 / 20, 4 / 20, 0]], rtol=1e-6)
    assert items.tolist() == [[1, 2, -100]]


@given(st.integers(0, 1000), st.integers(1, 12), st.floats(1e-6, 1e6))
def test_shares_do_not_depend_on_the_scale_of_scores(seed: int, num_items: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    weights = random.normal(size=(9, 9))
    histories = [random.permutation(9)[: random.integers(1, 9)] for _ in range(4)]
    one = Teacher(linear(weights.tolist()), num_items).soft_targets(histories)
    other = Teacher(linear((weights * scale).tolist()), num_items).soft_targets(histories)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=1e-6)
    assert all(not set(items) & set(history) for items, history in zip(one[0].tolist(), histories, strict=True))
    sums = one[1].sum(1)
    np.testing.assert_allclose(sums, (one[0] >= 0).any(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "settings"),
    [("itemknn", ["shrink=3", "neighbours=5"]), ("ease+itemknn", ["ease.regularization=7", "itemknn.shrink=3"]), ("random", [])],
)
def test_fitted_as_named(data: RecommendationData, finetune_arguments: MakeFinetune, teacher: str, settings: list[str]) -> None:
    arguments = finetune_arguments(teacher=teacher, teacher_settings=settings, teacher_items=4)
    fitted = fitted_teacher(arguments, data)
    assert fitted is not None
    given = arguments.parsed_teacher_settings
    expected = Teacher(fit_baseline(teacher, data, seed=arguments.seed, **given), num_items=4)
    histories = [np.array([1, 2]), np.array([5])]
    for mine, other in zip(fitted.soft_targets(histories), expected.soft_targets(histories), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_fitted_on_what_is_finetuned_on(data: RecommendationData, finetune_arguments: MakeFinetune) -> None:
    arguments = finetune_arguments(teacher="ease", train_on="train+validation")
    fitted = fitted_teacher(arguments, data, arguments.train_on)
    assert fitted is not None
    expected = fit_baseline("ease", data, fit_on="train+validation")
    one = Histories(np.array([0, 1]), np.array([3], dtype=np.int32))
    np.testing.assert_array_equal(fitted.recommender.score_histories(None, one), expected.score_histories(None, one))


def test_a_model_that_is_taught_comes_nearer_to_its_teacher(
    data: RecommendationData, finetune_arguments: MakeFinetune, tmp_path: Any
) -> None:
    """Share of the teacher's ten best items among the model's ten best, after the same steps with and without it."""
    histories = data.histories("train")
    users = np.arange(data.num_users)
    agreement = []
    for number, changes in enumerate(({}, {"teacher": "ease", "teacher_weight": 5.0})):
        arguments = finetune_arguments(output=str(tmp_path / str(number)), tune="full", num_train_epochs=4, **changes)
        model, _ = finetune(arguments)
        chosen, _ = Teacher(fit_baseline("ease", data), num_items=10).soft_targets(
            [histories.items[a:b] for a, b in spans(histories)]
        )
        best = np.argsort(-model.score_histories(users, histories), axis=1)[:, :10]
        shared = [len(set(mine) & set(other)) for mine, other in zip(best.tolist(), chosen.tolist(), strict=True)]
        agreement.append(float(np.mean(shared)))
    assert agreement[1] > agreement[0] + 0.5


def spans(histories: Histories) -> list[tuple[int, int]]:
    return list(zip(histories.indptr[:-1].tolist(), histories.indptr[1:].tolist(), strict=True))


def test_settings_without_a_teacher_are_logged(finetune_arguments: MakeFinetune, caplog: pytest.LogCaptureFixture) -> None:
    """A flag that leaves out the teacher of a YAML file leaves its settings behind."""
    finetune(finetune_arguments(teacher_settings=["shrink=3"], num_train_epochs=1))
    assert "there is no teacher: teacher_settings ['shrink=3'] are not used" in caplog.text


@pytest.mark.parametrize(
    ("teacher", "message"), [("eas", r"there is no baseline 'eas'; did you mean 'ease'"), ("ease+", r"there is no baseline ''")]
)
def test_a_teacher_that_does_not_exist(
    data: RecommendationData, finetune_arguments: MakeFinetune, teacher: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_teacher(finetune_arguments(teacher=teacher), data)


def test_a_setting_that_is_no_yaml(finetune_arguments: MakeFinetune) -> None:
    with pytest.raises(ValueError, match="the value of 'shrink=.1' is no YAML"):
        finetune_arguments(teacher="ease", teacher_settings=["shrink=[1"])
