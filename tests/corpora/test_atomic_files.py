"""Files and folders are written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_cllm4rec.core.errors import ExistingFileError, FileWriteError
from modeling_cllm4rec.corpora.atomic_files import (
    PARTIAL,
    REPLACED,
    atomic_file,
    atomic_folder,
    check_output_file,
    check_output_folder,
    restore_folder,
    sweep_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("unique", [False, True])
def test_a_folder_is_replaced_as_a_whole(unique: bool, tmp_path: Path) -> None:
    folder = tmp_path / "sub" / "best"
    for name in ("first", "second"):
        with atomic_folder(folder, unique) as temporary:
            (temporary / name).write_text(name)
    assert names(folder) == ["second"] and names(tmp_path / "sub") == ["best"]


@pytest.mark.parametrize("unique", [False, True])
def test_an_error_leaves_the_old_folder_and_nothing_else(unique: bool, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    with atomic_folder(folder, unique) as temporary:
        (temporary / "first").write_text("first")
    with pytest.raises(ValueError, match="half"), atomic_folder(folder, unique) as temporary:
        (temporary / "second").write_text("second")
        raise ValueError("half")
    assert names(folder) == ["first"] and names(tmp_path) == ["best"]


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / f"best{REPLACED}").mkdir()
    (tmp_path / f"best{PARTIAL}").mkdir()
    restore_folder(tmp_path / "best")
    assert names(tmp_path) == ["best", f"best{PARTIAL}"]
    restore_folder(tmp_path / "best")
    assert names(tmp_path) == ["best", f"best{PARTIAL}"]


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(ExistingFileError, match=f"^output: {tmp_path}/file is a file, so {path} cannot be a folder; choose"):
            check_output_folder(path)
    with pytest.raises(ExistingFileError, match=f"^output: {tmp_path}/folder is no ordinary file; choose another output$"):
        check_output_file(tmp_path / "folder")
    check_output_file(tmp_path / "file")
    check_output_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == ["file", "folder"]
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(FileWriteError, match=f"^to: nothing may be written into {tmp_path}/folder; choose another to"):
        check_output_file(tmp_path / "folder" / "x" / "y", "to")


def test_no_device_or_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(ExistingFileError, match="is no ordinary file"), atomic_file(path):
            raise AssertionError
    assert not Path(os.devnull).is_file()


KILLED = """
import os, signal, sys
from pathlib import Path
from modeling_cllm4rec.corpora import atomic_files
folder, when = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def kill(self, target):
    if when == "between the renames" and self.suffix == ".partial":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = kill
with atomic_files.atomic_folder(folder, unique=True) as temporary:
    (temporary / "new").write_text("new")
    if when == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("when", ["while writing", "between the renames"])
@pytest.mark.parametrize("exists", [True, False])
def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path, when: str, exists: bool) -> None:
    folder = tmp_path / "data"
    if exists:
        folder.mkdir()
        (folder / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), when])
    assert done.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path != folder]
    with atomic_folder(tmp_path / "other", unique=True) as running:  # That of a process that runs is left alone.
        (running.with_name(running.name.replace(".other.", ".data."))).mkdir()
    sweep_folder(folder)
    assert [path.name.split(".")[1] for path in tmp_path.iterdir() if path.name.startswith(".")] == ["data"]
    assert folder.exists() == exists
    assert not exists or [path.name for path in folder.iterdir()] == ["old"]
