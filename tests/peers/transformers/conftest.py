"""Run the test suites of other projects over our classes: `make test-peers`.

The folder TRANSFORMERS_SOURCE has a source distribution of transformers, of the installed version. Modules that a source
distribution lacks are replaced by empty ones, and their tests are then not run; a checkout of the repository has them all.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from peers_not_applicable import NOT_APPLICABLE

LACKING = {
    "tests.exporters.test_export": {"ExportTesterMixin": object},
    "tests.generation.test_utils": {"GenerationTesterMixin": None},
    "tests.utils.test_configuration_utils": {"config_common_kwargs": {}},
}
"""Module of the repository that no source distribution has -> names that the others import from it."""


def find_source() -> Path:
    """Return the folder of the sources of transformers."""
    given = os.environ.get("TRANSFORMERS_SOURCE", "")
    if not given or not (Path(given) / "tests" / "test_modeling_common.py").is_file():
        raise pytest.UsageError(
            f"TRANSFORMERS_SOURCE is {given!r}, which has no tests/test_modeling_common.py; run make test-peers"
        )
    return Path(given).resolve()


def package(name: str, folder: Path) -> None:
    """Make a package of a folder, whether or not it has an __init__.py; our own `tests` is not on the path then."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def prepare() -> list[str]:
    """Make transformers' tests importable as `tests`, and return the modules that the source lacks."""
    source = find_source()
    package("tests", source / "tests")
    lacking = []
    for name, members in LACKING.items():
        parent = name.rpartition(".")[0]
        folder = source / Path(*parent.split("."))
        package(parent, folder)
        if (folder / f"{name.rpartition('.')[2]}.py").is_file():
            continue
        module = types.ModuleType(name)
        for member, value in members.items():
            setattr(module, member, type(member, (), {}) if value in (None, object) else value)
        sys.modules[name] = module
        lacking.append(name)
    return lacking


LACKED = prepare()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what does not apply to a class, with its reason."""
    for item in items:
        if (reason := reason_of(item.nodeid)) is not None:
            item.add_marker(pytest.mark.skip(reason=f"not applicable: {reason}"))


def reason_of(node: str) -> str | None:
    """Return why a test does not apply, or None. The patterns are of the class and the test: `Class::test`."""
    name = node.partition("::")[2]
    return next((reason for pattern, reason in NOT_APPLICABLE.items() if re.search(pattern, name)), None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print passed, failed, not applicable and skipped tests of each class as a Markdown table."""
    counts: dict[str, Counter[str]] = {}
    for kind in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(kind, ()):
            if kind == "passed" and report.when != "call":
                continue
            suite = report.nodeid.split("::")[1] if "::" in report.nodeid else report.nodeid
            not_ours = kind == "skipped" and "not applicable" in str(report.longrepr)
            counts.setdefault(suite, Counter())["not applicable" if not_ours else "failed" if kind == "error" else kind] += 1
    kinds = ("passed", "failed", "not applicable", "skipped")
    terminalreporter.write_line(f"\nnot in this source, so not run: {', '.join(LACKED) or 'nothing'}")
    terminalreporter.write_line("| suite | " + " | ".join(kinds) + " |\n|---|---|---|---|---|")
    for suite, found in counts.items():
        terminalreporter.write_line(f"| {suite} | " + " | ".join(str(found[kind]) for kind in kinds) + " |")
