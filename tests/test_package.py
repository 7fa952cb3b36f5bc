"""The package from outside: what importing costs, its version, its metadata, and the Auto classes."""

import configparser
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import modeling_cllm4rec
from modeling_cllm4rec import tokenization

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def run_python(code: str, folder: Path, *arguments: str) -> str:
    """Run code in a fresh process that finds the package but stands in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_quick_and_imports_nothing_heavy(tmp_path):
    code = """
import sys, time
start = time.perf_counter()
import modeling_cllm4rec, modeling_cllm4rec.tokenization
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "transformers", "tokenizers", "numpy", "pandas", "pyarrow") if name in sys.modules]
print(seconds < 1, heavy, "transformers.models.cllm4rec" in sys.modules)
"""
    assert run_python(code, tmp_path) == "True [] False"


def test_public_names_are_there():
    for module in (modeling_cllm4rec, tokenization):
        for name in module.__all__:
            assert name in dir(module)
            assert getattr(module, name) is not None
    assert modeling_cllm4rec.CLLM4RecTokenizer is tokenization.CLLM4RecTokenizer
    assert modeling_cllm4rec.CLLM4RecConfig.__module__ == "modeling_cllm4rec.cllm4rec.configuration_cllm4rec"


@pytest.mark.parametrize("module", [modeling_cllm4rec, tokenization])
def test_unknown_name_lists_the_known_ones(module):
    with pytest.raises(AttributeError, match="has no attribute 'CLLM4RecTokeniser'; it has .*CLLM4RecTokenizer"):
        module.CLLM4RecTokeniser  # noqa: B018


def test_version_is_that_of_setup_cfg():
    try:
        importlib.metadata.version("cllm4rec")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("cllm4rec is not installed; `make test` installs it")
    assert modeling_cllm4rec.__version__ == SETUP["metadata"]["version"]


def test_version_says_when_the_package_is_not_installed(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert modeling_cllm4rec.__version__ == "0+not.installed.run.pip.install"


def test_constraints_obey_the_lower_bounds():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert tested["torch"] == "2.13.0"  # no local suffix: every index knows it
    extras = SETUP["options.extras_require"]
    required = SETUP["options"]["install_requires"] + "\n" + "\n".join(extras[name] for name in extras)
    for requirement in [Requirement(line) for line in required.splitlines() if line.strip()]:
        assert requirement.specifier.contains(tested[requirement.name.lower()]), requirement


def test_nobody_is_told_to_install_what_is_on_no_index():
    """The name is free there: whoever took it would be installed."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    folders = ("modeling_cllm4rec", "modeling_cllm4rec/tokenization", "recipes")
    files += [path for name in folders for path in (ROOT / name).rglob("*.py")]
    told = re.compile(r"pip install [^`\n]*cllm4rec(\[|\b[^.])")
    assert [str(path) for path in files if told.search(path.read_text(encoding="utf-8"))] == []


def test_citation_names_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = [citation["preferred-citation"], *citation["references"]]
    assert [paper["url"].rsplit("/", 1)[1] for paper in papers] == ["2311.01343", "2311.09049"]


def test_both_packages_ship_their_types():
    for module in (modeling_cllm4rec, tokenization):
        assert Path(module.__file__).with_name("py.typed").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_the_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = [line.split()[1] for line in listed.splitlines()]
    assert {"demo", "test", "test-extras", "test-slow", "setup-all", "lint", "types", "docs", "bench", "help"} <= set(targets)


def make_variable(name: str) -> list[str]:
    """The words of a variable of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} := ")]
    return line.split(" := ")[1].replace(",", " ").split()


def test_make_installs_every_extra():
    assert make_variable("EXTRAS") == sorted(SETUP["options.extras_require"])


def test_make_tests_whatever_skips_without_an_extra():
    skips = re.compile(r"""importorskip\(["'](?!tensorboard|sklearn)|needs implicit|skipif\(importlib.util.find_spec""")
    places = tuple(make_variable("EXTRA_TESTS"))
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    skipping = [name for name, path in files.items() if skips.search(path.read_text(encoding="utf-8"))]
    assert len(skipping) > 5
    assert [name for name in skipping if not name.startswith((*places, "tests/test_package.py"))] == []


def test_all_that_the_extras_bring_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    extras = SETUP["options.extras_require"]
    asked = [SETUP["options"]["install_requires"], *(extras[name] for name in extras)]
    todo = [Requirement(line) for part in asked for line in part.splitlines() if line.strip()]
    brought: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        for extra in ("", *one.extras):
            name = canonicalize_name(one.name)
            if (name, extra) in brought:
                continue
            brought.add((name, extra))
            try:
                further = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here; CI installs them all
                continue
            requirements = map(Requirement, further)
            todo += [line for line in requirements if line.marker is None or line.marker.evaluate({"extra": extra})]
    assert {name for name, _ in brought} - pinned == set()


@pytest.fixture(scope="module")
def saved_folder(tiny_backbones, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    backbone = tiny_backbones["gpt2"]
    modeling_cllm4rec.CLLM4RecForRecommendation.from_backbone(backbone, num_users=2, num_items=3).save_pretrained(folder)
    tokenization.CLLM4RecTokenizer.from_backbone(backbone, num_users=2, num_items=3).save_pretrained(folder)
    return folder


LOAD_ALL = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
for auto_class in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer):
    loaded = type(auto_class.from_pretrained(sys.argv[1]))
    print(loaded.__module__, loaded.__name__)
"""
LOADED = """\
modeling_cllm4rec.cllm4rec.configuration_cllm4rec CLLM4RecConfig
modeling_cllm4rec.cllm4rec.modeling_cllm4rec CLLM4RecForRecommendation
modeling_cllm4rec.cllm4rec.modeling_cllm4rec CLLM4RecForCausalLM
modeling_cllm4rec.tokenization.tokenization_cllm4rec CLLM4RecTokenizer"""
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "first",
    [
        "import modeling_cllm4rec",
        "from transformers import AutoModel, AutoTokenizer\nimport modeling_cllm4rec",
        "from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecModel",
        pytest.param("import modeling_cllm4rec.tokenization", marks=slow),
        pytest.param("from modeling_cllm4rec import CLLM4RecForRecommendation", marks=slow),
        pytest.param("from transformers import AutoConfig\nimport modeling_cllm4rec", marks=slow),
        pytest.param("from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer", marks=slow),
        pytest.param("import modeling_cllm4rec.cllm4rec.configuration_cllm4rec", marks=slow),
        pytest.param("import transformers, modeling_cllm4rec", marks=slow),
    ],
)
def test_auto_classes_know_the_model_type_in_any_order_of_imports(first, saved_folder, tmp_path):
    assert run_python(first + LOAD_ALL, tmp_path, str(saved_folder)) == LOADED
