"""The log at a terminal: one form of lines, around progress bars."""

from __future__ import annotations

import io
import logging
import re
import warnings

import pytest
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from modeling_cllm4rec.core.console_log import ConsoleHandler, show_log


def record(name: str, message: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "file", 1, message, (), None)


def test_lines_have_a_clock_and_name_other_packages_only() -> None:
    handler = ConsoleHandler()
    assert re.fullmatch(r"\d\d:\d\d:\d\d reading", handler.format(record("modeling_cllm4rec.commands.prepare", "reading")))
    assert re.fullmatch(r"\d\d:\d\d:\d\d datasets.x: reading", handler.format(record("datasets.x", "reading")))


def test_a_line_does_not_share_its_line_with_a_bar() -> None:
    handler = ConsoleHandler()
    written = handler.stream = io.StringIO()
    with tqdm(total=2, file=written) as bar:
        bar.update()
        handler.emit(record("modeling_cllm4rec.x", "said"))
    (line,) = [part for part in re.split(r"[\r\n]", written.getvalue()) if "said" in part]
    assert re.fullmatch(r"\d\d:\d\d:\d\d said", line)


def test_show_log_leaves_out_clients_and_the_bars_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level, hidden = root.level, []
    monkeypatch.setattr(transformers_logging, "disable_progress_bar", lambda: hidden.append(True))
    try:
        show_log()
        assert [type(handler) for handler in root.handlers] == [ConsoleHandler]
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
        assert hidden == [True]
    finally:
        root.setLevel(level)


def test_a_warning_is_one_line_without_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored after the test
    show_log()
    shown = warnings.formatwarning("2 users have\nno test items", UserWarning, "evaluator.py", 398)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: 2 users have no test items\n", shown)
    assert " FutureWarning: x\n" in warnings.formatwarning("x", FutureWarning, "other.py", 1, "x = 1")
