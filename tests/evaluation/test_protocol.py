"""The protocol line: what it says, what it refuses, its way through a dictionary."""

import dataclasses
import json

import pytest

from modeling_cllm4rec.evaluation.protocol import Protocol

PROTOCOL = Protocol("beauty", "random split, seed 1", "test", "train", "train", items=50, users=9, excluded_users=1)


def test_one_line_says_everything():
    line = str(PROTOCOL)
    assert "\n" not in line
    for part in ("beauty", "seed 1", "test", "history train", "masked train", "full catalogue of 50 items", "9 users"):
        assert part in line
    assert "1 without test items left out" in line
    assert "recall over min(k, true items)" in line
    assert "ties lower item index first" in line


def test_each_field_changes_the_line():
    other = {"split": "validation", "test_history": "train+validation", "masked": "none", "users": 8, "items": 51}
    for field, value in other.items():
        assert str(dataclasses.replace(PROTOCOL, **{field: value})) != str(PROTOCOL)


def test_there_and_back():
    assert Protocol.from_dict(json.loads(json.dumps(PROTOCOL.to_dict()))) == PROTOCOL


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROTOCOL.users = 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("split", "train", "split must be one of validation, test, got 'train'"),
        ("test_history", "all", r"test_history must be one of train, train\+validation, got 'all'"),
        ("masked", "test", r"masked must be one of train, train\+validation, none, got 'test'"),
    ],
)
def test_refuses_other_values(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROTOCOL, **{field: value})


@pytest.mark.parametrize("field", ["test_history", "masked"])
def test_validation_is_not_given_when_it_is_to_be_predicted(field):
    with pytest.raises(ValueError, match=f"{field} is 'train.validation', but the validation split is predicted"):
        dataclasses.replace(PROTOCOL, split="validation", **{field: "train+validation"})


def test_from_dict_names_missing_and_unknown_fields():
    values = PROTOCOL.to_dict()
    values["user"] = values.pop("users")
    with pytest.raises(ValueError, match=r"missing \['users'\], unknown \['user'\]"):
        Protocol.from_dict(values)
