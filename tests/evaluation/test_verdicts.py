"""Differences of two recommenders in words."""

from __future__ import annotations

import numpy as np
import pytest

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.verdicts import Estimate, compare, paired_difference, plain_sentence, verdict, verdicts


@pytest.mark.parametrize(
    ("difference", "wanted"),
    [
        ((0.01, 0.001, 0.02), "A is above B by .0100 (95% interval .0010 to .0200) on m."),
        ((-0.01, -0.02, -0.001), "A is below B by .0100 (95% interval .0010 to .0200) on m."),
        ((0.01, 0.0, 0.02), "A and B do not differ significantly on m: the difference is .0100 (95% interval .0000 to .0200)."),
    ],
)
def test_verdict(difference: tuple[float, float, float], wanted: str) -> None:
    assert verdict("A", "B", Estimate(*difference, 9), "m") == wanted


def report(values: list[float], users: list[int]) -> EvaluationReport:
    """Return a report of two metrics, one of them without values per user."""
    protocol = Protocol("mine", "a split", "validation", "train", "train", items=9, users=len(users), excluded_users=0)
    metrics = {"recall@5": float(np.mean(values)), "coverage@5": 0.5}
    return EvaluationReport(protocol, metrics, {}, 1.0, 0, 0, np.array(users), {"recall@5": np.array(values)})


def test_the_difference_is_paired() -> None:
    """The values vary much more between users than between the models, which only a paired interval can see."""
    spread = np.linspace(0, 1, 50)
    difference = paired_difference(spread + 0.01, spread)
    assert difference.mean == pytest.approx(0.01) and difference.low > 0.009 and difference.users == 50


def test_verdicts_over_references() -> None:
    values = {"A": [1.0, 1.0, 0.5], "B": [0.5, 0.5, 0.0], "C": [1.0, 1.0, 0.5]}
    reports = {name: report(row, [0, 1, 2]) for name, row in values.items()}
    compared = compare(reports, "A")
    assert verdicts(compared, "A") == [
        "A is above B by .5000 (95% interval .5000 to .5000) on recall@5.",
        "A and C do not differ significantly on recall@5: the difference is .0000 (95% interval .0000 to .0000).",
    ]
    assert compared.baselines["B"].differences == {"recall@5": (0.5, 0.5, 0.5)}
    assert compared.baselines["C"].metrics == {"recall@5": reports["C"].metrics["recall@5"], "coverage@5": 0.5}
    assert plain_sentence(compared.baselines) == (
        "This model is above B on recall@5; not significantly different from C on recall@5."
    )
    assert plain_sentence(compare(reports, "B").baselines) == "This model is below A on recall@5 and C on recall@5."
    assert plain_sentence({}) == ""


def test_other_users_are_refused() -> None:
    reports = {"A": report([1.0], [0]), "B": report([1.0], [3])}
    with pytest.raises(InputError, match="A and B were measured on different users"):
        compare(reports, "A")
