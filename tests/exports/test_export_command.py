"""`cllm4rec export`: which exports there are, and what cannot be exported."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from modeling_cllm4rec.baselines.hybrid import linear_part
from modeling_cllm4rec.core.linear_parts import LinearParts
from modeling_cllm4rec.corpora.interaction_matrix import ItemWeights
from modeling_cllm4rec.exports.command import main
from modeling_cllm4rec.exports.output_folder import new_output_folder, require_exportable


def test_help_and_unknown_exports(capsys):
    assert main(["--help"]) == 0
    assert "cllm4rec export onnx --model runs/mine" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["gguf"]) == 2
    assert "unknown target 'gguf'" in capsys.readouterr().err
    for kind in ("causal-lm", "onnx", "vectors"):
        with pytest.raises(SystemExit):
            main([kind, "--help"])
        assert f"cllm4rec export {kind} --model runs/" in capsys.readouterr().out


def test_space_is_imported_when_it_is_asked_for(monkeypatch):
    space = ModuleType("modeling_cllm4rec.app.space")
    space.main = lambda argv: len(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modeling_cllm4rec.app", ModuleType("modeling_cllm4rec.app"))
    monkeypatch.setitem(sys.modules, "modeling_cllm4rec.app.space", space)
    assert main(["space", "--model", "x"]) == 2


def test_a_hybrid_is_not_exported(model):
    matrix = np.eye(model.num_items)
    model.linear_parts = LinearParts([linear_part("ease", ItemWeights(matrix))], None)
    with pytest.raises(ValueError, match="export onnx: the model is a hybrid with the linear models ease"):
        require_exportable(model, "export onnx")


def test_an_output_folder_holds_nothing_else(tmp_path):
    for _ in range(2):  # also into an empty folder
        with new_output_folder(tmp_path / "a" / "b") as temporary:
            assert temporary.is_dir() and temporary != tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(FileExistsError, match="folder: .* exists and is not empty"), new_output_folder(tmp_path / "a"):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="exists and is not empty"), new_output_folder(tmp_path / "file"):
        pass


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_output_folder(tmp_path / "out") as temporary:
        (temporary / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_no_such_model(tmp_path, capsys):
    assert main(["onnx", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "cllm4rec export onnx: error: --model" in capsys.readouterr().err
