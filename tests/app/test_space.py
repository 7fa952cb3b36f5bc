"""The folder of a Space."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

from modeling_cllm4rec.app.space import main, package_files, package_requirements, space_files, write_space


def test_the_files_of_a_space():
    files = space_files(["you/beauty", "you/beauty-lcrec"], "Beauty: a look", ["torch>=2", "gradio"], "6.31.0")
    header, text = re.fullmatch(r"---\n(.*?)---\n\n(.*)", files["README.md"], re.DOTALL).groups()
    card = yaml.safe_load(header)
    assert card["title"] == "Beauty: a look"
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert card["python_version"] == "3.11"
    assert card["models"] == ["you/beauty", "you/beauty-lcrec"]
    assert "https://huggingface.co/you/beauty-lcrec" in text
    assert files["requirements.txt"].splitlines()[1:] == ["torch>=2", "gradio"]
    compile(files["app.py"], "app.py", "exec")
    assert 'MODELS = ["you/beauty", "you/beauty-lcrec"]' in files["app.py"]


@pytest.mark.parametrize("models", [[], ["you/a", "you/a"]])
def test_models_are_named_once(models):
    with pytest.raises(ValueError, match="give one or more different models"):
        space_files(models, "x", ["y"], "6.31.0")


def test_a_folder_of_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "beauty").mkdir(parents=True)
    for name in ("runs/beauty", "beauty", "a/b/c", "/a"):
        with pytest.raises(ValueError, match="is no name on the Hub"):
            space_files([name], "x", ["y"], "6.31.0")


def test_the_command(tmp_path, capsys):
    pytest.importorskip("gradio", reason="needs the extra app")
    folder = tmp_path / "space"
    assert main(["--model", "you/beauty", "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "modeling_cllm4rec", "requirements.txt"]
    assert (folder / "modeling_cllm4rec" / "tokenization" / "tokenization_cllm4rec.py").is_file()
    assert "title: beauty" in (folder / "README.md").read_text(encoding="utf-8")
    assert "upload" in capsys.readouterr().out
    assert main(["--model", "you/beauty", "--output", str(folder)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="choose a new or empty folder"):
        write_space(folder, {})
    flags = ["--model", "you/beauty", "--output", str(tmp_path / "released"), "--requirement", "cllm4rec[app] @ git+https://x/y"]
    capsys.readouterr()
    assert main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["app.py", "requirements.txt", "README.md"]
    lines = (tmp_path / "released" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["cllm4rec[app] @ git+https://x/y"]
    assert not (tmp_path / "released" / "modeling_cllm4rec").exists()


@pytest.mark.slow
def test_a_space_brings_the_package_along(tmp_path):
    """Its page is imported from the folder, and pip is asked for nothing that is on no index."""
    write_space(tmp_path, package_files())
    code = "import modeling_cllm4rec.app.answers as one; print(one.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "modeling_cllm4rec" / "app" / "answers.py")
    names = [Requirement(line).name for line in package_requirements()]
    assert {"torch", "transformers", "gradio"} <= set(names) and "cllm4rec" not in names
