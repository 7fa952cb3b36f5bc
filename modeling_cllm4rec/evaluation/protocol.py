"""The conditions of a measurement, as one line that is reported with each number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modeling_cllm4rec.core.errors import InputError

EVALUATED_SPLITS = ("validation", "test")
TEST_HISTORIES = ("train", "train+validation")
WITHOUT_HISTORY = "none"
"""The input of a search by the words of a query alone."""
ALL_SCORED = "all items scored"
MASKS = ("train", "train+validation", "none")


@dataclass(frozen=True)
class Protocol:
    """The conditions of one evaluation. Two numbers may be compared only if their protocols are equal.

    Attributes:
        dataset: name of the data folder.
        splitting: how the data was filtered and split, the line in the data folder's `protocol`.
        split: the interactions to predict, `validation` or `test`.
        test_history: the input of the recommender, `train` or `train+validation`; `none` for queries alone.
        masked: the interactions excluded from the ranking, `train`, `train+validation` or `none`.
        items: number of items of the catalogue.
        users: number of users in the mean.
        excluded_users: number of users excluded because they have no interactions in `split`.
        candidates: the ranked items.
        recall: denominator of recall.
        ties: order of items with equal scores.
        decoding: description of the search, if not all items were scored.
        sample: description of the evaluated users, if not all.
        queries: description of the queries that the recommender was given, if any.

    Raises:
        InputError: `split`, `test_history` or `masked` has another value, or includes the interactions to predict.

    >>> print(Protocol("beauty", "given split", "test", "train", "train", items=50, users=9, excluded_users=1))
    beauty (given split): test; history train; masked train; ranked full catalogue of 50 items; \
9 users, 1 without test items left out; recall over min(k, true items); ties lower item index first; all items scored
    """

    dataset: str
    splitting: str
    split: str
    test_history: str
    masked: str
    items: int
    users: int
    excluded_users: int
    candidates: str = "full catalogue"
    recall: str = "min(k, true items)"
    ties: str = "lower item index first"
    decoding: str = ALL_SCORED
    sample: str = "all"
    queries: str = "none"

    def __post_init__(self) -> None:
        """Check that all values are valid."""
        histories = TEST_HISTORIES if self.queries == "none" else (*TEST_HISTORIES, WITHOUT_HISTORY)
        for field, allowed in (("split", EVALUATED_SPLITS), ("test_history", histories), ("masked", MASKS)):
            value = getattr(self, field)
            if value not in allowed:
                raise InputError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
        for field in ("test_history", "masked"):
            if self.split == "validation" and "validation" in getattr(self, field):
                raise InputError(
                    f"{field} is {getattr(self, field)!r}, but the validation split is predicted; use {field} 'train'"
                )

    def __str__(self) -> str:
        """Return the protocol line."""
        sample = "" if self.sample == "all" else f" ({self.sample})"
        queries = "" if self.queries == "none" else f"queries {self.queries}; "
        targets = f"{self.split} items" if self.queries == "none" else "queries"
        return (
            f"{self.dataset} ({self.splitting}): {self.split}; {queries}history {self.test_history}; masked {self.masked}; "
            f"ranked {self.candidates} of {self.items} items; {self.users} users{sample}, {self.excluded_users} without "
            f"{targets} left out; recall over {self.recall}; ties {self.ties}; {self.decoding}"
        )

    @property
    def departures(self) -> tuple[str, ...]:
        """Deviations from a default evaluation: queries, other masked items than the input, a sample of users.

        >>> Protocol("beauty", "given split", "test", "train", "none", items=50, users=9, excluded_users=1).departures
        ('masked none',)
        """
        found: tuple[str, ...] = () if self.queries == "none" else ("search",)
        found += () if self.masked == self.test_history else (f"masked {self.masked}",)
        return found if self.sample == "all" else (*found, f"{self.users} users")

    def to_dict(self) -> dict[str, str | int]:
        """Return all fields for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Return the protocol of the fields of `to_dict`.

        Raises:
            InputError: if a field without a default is missing, or one is unknown.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if not needed <= set(values) <= fields:
            missing, unknown = sorted(needed - set(values)), sorted(set(values) - fields)
            raise InputError(f"protocol fields do not fit: missing {missing}, unknown {unknown}; it needs {sorted(fields)}")
        return cls(**values)
