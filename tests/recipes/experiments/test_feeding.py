"""The experiment that measures how many documents the host makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from feeding import KINDS, main


@pytest.mark.slow
def test_every_kind_of_document_is_measured(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(data_folder), "--steps", "3", "--repeats", "1", "--batch-size", "4", "--device-ms", "0"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == list(KINDS)
    assert all(float(cell.strip(" |").replace(",", "")) > 0 for row in rows[1:] for cell in row[1:])
