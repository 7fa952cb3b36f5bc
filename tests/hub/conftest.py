"""Models to move and push, and processes that do not have the package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

ROOT = Path(__file__).parents[2]
ITEMS = ["B00 1", "<item_0>", "🎸", "ä", "5", "6"]
NO_PACKAGE = '''
import importlib, json, sys

class NotInstalled:
    """Comes before all other finders, also those of an editable installation."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_cllm4rec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in ("modeling_cllm4rec", "modeling_cllm4rec.cllm4rec.modeling_cllm4rec"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported: this process proves nothing")
arguments = json.loads(sys.argv[1])
'''
WITH_PACKAGE = f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\narguments = json.loads(sys.argv[1])\n"
CONNECTED = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path) -> Run:
    """Return a runner of code in a fresh process; the code reads `arguments` and prints its result in JSON as its last line."""

    def run_code(code: str, *, package: bool = False, environment: dict[str, str] | None = None, **arguments: Any) -> Any:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        inherited = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.lower().endswith("_proxy")
        }
        if environment:
            inherited = {name: value for name, value in inherited.items() if name not in CONNECTED} | environment
        done = subprocess.run(
            [sys.executable, "-P", "-c", (WITH_PACKAGE if package else NO_PACKAGE) + code, json.dumps(arguments)],
            cwd=folder,
            env=inherited,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run_code


@pytest.fixture(scope="session")
def make_folder() -> Callable[[Path, Path], Path]:
    """Save a small model with its tokenizer over a backbone."""

    def make(backbone: Path, folder: Path) -> Path:
        model = CLLM4RecForRecommendation.from_backbone(
            backbone,
            users=KnownUsers([7, 1], np.array([0, 2, 3]), np.array([0, 4, 2], np.int32)),
            catalogue=Catalogue(pa.table({"item_id": ITEMS, "title": [f"title {number}" for number in range(6)]})),
            initializer_range=0.5,
        )
        tokenizer = CLLM4RecTokenizer.from_backbone(backbone, num_users=2, num_items=6, id_offset=model.config.id_offset)
        model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
