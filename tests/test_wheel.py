"""The wheel, installed and used outside the repository, and the content of the source distribution."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from wheels import PIP, ROOT, build_wheel

from modeling_cllm4rec.corpora.synthetic import SyntheticDataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed wheel; its dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "install", "--no-deps", "--target", folder / "packages", build_wheel(folder)], check=True)
    return folder / "packages"


def run(installed: Path, folder: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, installed / "bin" / "cllm4rec", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_table_to_recommendations(
    installed: Path, synthetic_dataset: SyntheticDataset, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    pq.write_table(synthetic_dataset.interactions, tmp_path / "reviews.parquet")
    pq.write_table(synthetic_dataset.items, tmp_path / "items.parquet")
    given = ("--config", "demo.yaml", "--data", "data", "--output", "run", "--epochs", 1)
    run(installed, tmp_path, "prepare", "--interactions", "reviews.parquet", "--items", "items.parquet", "--output", "data")
    run(installed, tmp_path, "pretrain", *given, "--backbone", tiny_backbones["gpt2"])
    run(installed, tmp_path, "finetune", *given)
    found = json.loads(
        run(installed, tmp_path, "evaluate", "--model", "run", "--data", "data", "--metrics", "recall@10", "--json")
    )
    assert set(found) == {"popularity", "CLLM4Rec"}
    user = synthetic_dataset.interactions["user_id"][0].as_py()
    lines = run(installed, tmp_path, "recommend", "--model", "run", "--users", user, "--k", 3, "--json").splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [1, 2, 3]


def test_it_is_the_installed_package_and_it_is_whole(installed: Path, tmp_path: Path) -> None:
    names = [
        {file.relative_to(root) for file in root.rglob("*.yaml")}
        for root in (installed / "modeling_cllm4rec" / "configs", ROOT / "recipes" / "configs")
    ]
    assert names[0] == names[1]
    shipped = {path.relative_to(installed) for path in installed.rglob("*") if path.suffix in (".css", ".js", ".yaml")}
    sources = [ROOT / name for name in ("modeling_cllm4rec", "modeling_cllm4rec/tokenization")]
    assert shipped >= {
        path.relative_to(ROOT) for folder in sources for path in folder.rglob("*") if path.suffix in (".css", ".js", ".yaml")
    }
    code = "import modeling_cllm4rec; print(modeling_cllm4rec.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(imported.stdout.strip()).is_relative_to(installed)


def test_source_distribution_holds_every_file_of_the_checkout(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    tracked = [name for name in listed.stdout.splitlines() if os.path.lexists(ROOT / name)]
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "source" / name, follow_symlinks=False)
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tmp_path / "source", check=True, capture_output=True)
    (archive,) = tmp_path.glob("cllm4rec-*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    links = {name for name in tracked if (ROOT / name).is_symlink()}  # their files are in the archive in their place
    assert links == {"modeling_cllm4rec/configs", "modeling_cllm4rec/tokenization"}
    assert set(tracked) - links - held == set()
