"""Folders that earlier versions saved load, through this package and without it, and answer as they did then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SAVED = Path(__file__).parents[1] / "saved_folders"
CODE = """
from transformers import AutoModel
model = AutoModel.from_pretrained(arguments["folder"], trust_remote_code=arguments["remote"])
answers = model.recommend(users=arguments["users"], k=5).to_pandas().to_dict("list")
print(json.dumps({"module": type(model).__module__.split(".")[0], **answers}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("commit", sorted(path.name for path in SAVED.iterdir()))
@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
@pytest.mark.parametrize("package", [True, False], ids=["with the package", "with the folder's own code"])
def test_a_folder_of_an_earlier_version(run, commit, system, package):
    expected = json.loads((SAVED / commit / "expected.json").read_text(encoding="utf-8"))[system]
    found = run(
        ("import modeling_cllm4rec\n" if package else "") + CODE,
        package=package,
        folder=str(SAVED / commit / system),
        remote=not package,
        users=list(dict.fromkeys(expected["user"])),
    )
    assert found.pop("module") == ("modeling_cllm4rec" if package else "transformers_modules")
    assert found.pop("score") == pytest.approx(expected.pop("score"), abs=1e-5)
    assert found == expected
