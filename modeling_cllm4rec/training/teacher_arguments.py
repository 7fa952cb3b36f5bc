"""Arguments of a teacher, for the stages that can learn from one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.argument_names import accepts_other_names
from modeling_cllm4rec.training.arguments import TrainingArguments, check_at_least


@accepts_other_names
@dataclass
class TeacherArguments(TrainingArguments):
    """Arguments of a teacher, a baseline whose soft targets are also learned; see `baselines/soft_targets.py`."""

    teacher: str = field(
        default="",
        metadata={"help": "baseline whose soft targets are also learned, such as ease, or several joined by +"},
    )
    teacher_settings: list[str] = field(
        default_factory=list,
        metadata={"help": "settings of the teacher: regularization=300, or of several ease.regularization=300, weights.ials=0.6"},
    )
    teacher_items: int = field(default=100, metadata={"help": "best items of the teacher that have a soft target, per history"})
    teacher_power: float = field(
        default=1.0, metadata={"help": "soft targets are the teacher's positive scores, raised to this power and normalized"}
    )
    teacher_weight: float = field(default=1.0, metadata={"help": "weight of the cross-entropy with the teacher's soft targets"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "teacher_items")
        check_at_least(self, 0, "teacher_weight")
        if not self.teacher_power > 0:
            raise InputError(f"teacher_power is {self.teacher_power}; it must be above 0")
        _ = self.parsed_teacher_settings

    @property
    def parsed_teacher_settings(self) -> dict[str, Any]:
        """Return setting -> value of the teacher; of several baselines, baseline -> setting -> value.

        Raises:
            InputError: a setting has another form than NAME=VALUE.
        """
        return parsed_settings("teacher_settings", self.teacher_settings)


def parsed_settings(argument: str, words: Iterable[str]) -> dict[str, Any]:
    """Return setting -> value of a baseline; of several baselines, baseline -> setting -> value.

    Args:
        argument: name of the argument, for errors.
        words: NAME=VALUE, or BASELINE.NAME=VALUE; values are YAML.

    Raises:
        InputError: a setting has another form.

    >>> parsed_settings("settings", ["ease.regularization=300", "textknn.neighbours=null"])
    {'ease': {'regularization': 300}, 'textknn': {'neighbours': None}}
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{argument}: {word!r} has no = in it; write settings as regularization=300")
        member, dot, setting = name.partition(".")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{argument}: the value of {word!r} is no YAML ({error}); quote it") from error
        (settings.setdefault(member, {}) if dot else settings)[setting or name] = parsed
    return settings
