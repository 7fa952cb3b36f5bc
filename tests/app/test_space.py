"""The folder of a Space."""

import re

import pytest
import yaml

from modeling_cllm4rec.app.space import main, space_files, write_space


def test_the_files_of_a_space():
    files = space_files(["you/beauty", "you/beauty-lcrec"], "Beauty: a look", "cllm4rec[app]==0.1.0", "6.31.0")
    header, text = re.fullmatch(r"---\n(.*?)---\n\n(.*)", files["README.md"], re.DOTALL).groups()
    card = yaml.safe_load(header)
    assert card["title"] == "Beauty: a look"
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert card["python_version"] == "3.11"
    assert card["models"] == ["you/beauty", "you/beauty-lcrec"]
    assert "https://huggingface.co/you/beauty-lcrec" in text
    assert files["requirements.txt"].splitlines()[-1] == "cllm4rec[app]==0.1.0"
    compile(files["app.py"], "app.py", "exec")
    assert 'MODELS = ["you/beauty", "you/beauty-lcrec"]' in files["app.py"]


@pytest.mark.parametrize("models", [[], ["you/a", "you/a"]])
def test_models_are_named_once(models):
    with pytest.raises(ValueError, match="name one or more models, none twice"):
        space_files(models, "x", "y", "6.31.0")


def test_a_folder_of_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "beauty").mkdir(parents=True)
    for name in ("runs/beauty", "beauty", "a/b/c", "/a"):
        with pytest.raises(ValueError, match="is no name on the Hub"):
            space_files([name], "x", "y", "6.31.0")


def test_the_command(tmp_path, capsys):
    pytest.importorskip("gradio", reason="needs the extra app: pip install 'cllm4rec[app]'")
    folder = tmp_path / "space"
    assert main(["--model", "you/beauty", "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert "title: beauty" in (folder / "README.md").read_text(encoding="utf-8")
    assert "upload" in capsys.readouterr().out
    assert main(["--model", "you/beauty", "--output", str(folder)]) == 2
    assert "holds something already" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="--output"):
        write_space(folder, {})
