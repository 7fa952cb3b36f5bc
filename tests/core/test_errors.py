"""Errors cross the border of a process, as in a pool of workers."""

from __future__ import annotations

import copy
import pickle
import signal

import pytest

from modeling_cllm4rec.core import errors
from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.training.interruption import RunInterrupted

MADE = [
    *(kind("some words") for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    QuestionError("candidates", ["x"], "the 3 item_ids", "correct them", skippable=True),
    RunInterrupted(signal.SIGTERM, "pretrain", 7),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_an_error_is_the_same_in_another_process(error: BaseException, way) -> None:
    other = way(error)
    assert type(other) is type(error) and str(other) == str(error) and vars(other) == vars(error)
