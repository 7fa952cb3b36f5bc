"""Files and folders are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_cllm4rec.corpora.atomic_files import PARTIAL, REPLACED, atomic_file, atomic_folder, restore_folder


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
