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
from packaging.version import Version

import modeling_cllm4rec
from modeling_cllm4rec import _deprecated, tokenization
from modeling_cllm4rec.systems import SYSTEMS, resolve

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def run_python(code: str, folder: Path, *arguments: str) -> str:
    """Run code in a new process that finds the package but runs in another folder."""
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


def read_pins(name: str) -> dict[str, str]:
    """Return the version of each package of a file of constraints, by its canonical name."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line[0] != "#")}


def requirements_of(*extras: str) -> list[Requirement]:
    """Return what setup.cfg requires without any extra, and for these extras."""
    parts = [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][extra] for extra in extras)]
    return [Requirement(line) for part in parts for line in part.splitlines() if line.strip()]


def test_constraints_obey_the_lower_bounds():
    tested = read_pins("constraints.txt")
    assert tested["torch"] == "2.13.0"  # no local suffix: every index knows it
    for requirement in requirements_of(*SETUP["options.extras_require"]):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


def test_lowest_constraints_are_the_lower_bounds():
    lowest = read_pins("constraints-lowest.txt")
    for requirement in requirements_of():
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        assert Version(lowest[canonicalize_name(requirement.name)]) == Version(bound), requirement
    for requirement in requirements_of("dev"):
        assert requirement.specifier.contains(lowest[canonicalize_name(requirement.name)]), requirement


def test_lowest_constraints_are_not_above_the_tested_ones():
    tested = read_pins("constraints.txt")
    above = {name: pin for name, pin in read_pins("constraints-lowest.txt").items() if Version(pin) > Version(tested[name])}
    assert above == {}


def test_no_page_installs_the_package_from_an_index():
    """No index has the package, so anyone could register its name there."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    folders = ("modeling_cllm4rec", "modeling_cllm4rec/tokenization", "recipes")
    files += [path for name in folders for path in (ROOT / name).rglob("*.py")]
    command = re.compile(r"pip install [^`\n]*cllm4rec(\[|\b[^.])")
    assert [str(path) for path in files if command.search(path.read_text(encoding="utf-8"))] == []


GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
WORKFLOWS = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in GITHUB if file.parent.name == "workflows"}
in_a_checkout = pytest.mark.skipif(not GITHUB, reason="needs the folder .github of a checkout")


def steps_of(workflow: dict) -> list[tuple[dict, dict]]:
    """Return each step of a workflow with its job."""
    return [(job, step) for job in workflow["jobs"].values() for step in job["steps"]]


def targets_of(workflow: dict) -> set[str]:
    """Return the make targets that a workflow runs, those of its matrix too."""
    targets: set[str] = set()
    for job, step in steps_of(workflow):
        words = step.get("run", "").replace("${{ matrix.target }}", "MATRIX").split()
        assert words[:1] in ([], ["make"]), step
        named = {word for word in words[1:] if "=" not in word}
        targets |= set(job["strategy"]["matrix"]["target"]) if named == {"MATRIX"} else named
    return targets


@in_a_checkout
@pytest.mark.parametrize("file", GITHUB, ids=lambda file: file.name)
def test_files_of_github_are_yaml(file):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


@in_a_checkout
def test_the_release_is_built_checked_and_published_by_trusted_publishing():
    release = WORKFLOWS["release.yml"]
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as a truth value
    assert release["permissions"] == {"contents": "read"} and "permissions" not in build
    assert [step["run"] for step in build["steps"] if "run" in step] == ["make PYTHON=python dist TAG=${{ github.ref_name }}"]
    assert publish["needs"] == "build" and publish["if"] == "vars.PUBLISH == 'true'"
    assert publish["permissions"] == {"id-token": "write", "attestations": "write"}
    steps = [step["uses"].partition("@")[0] for step in publish["steps"]]
    assert steps == ["actions/download-artifact", "actions/attest-build-provenance", "pypa/gh-action-pypi-publish"]
    assert "password" not in str(publish)  # a trusted publisher needs no token


@in_a_checkout
@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - {"release.yml"}))
def test_workflows_only_read_and_call_targets_of_the_makefile(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    actions = [step["uses"] for _, step in steps_of(workflow) if "uses" in step]
    assert actions and [action for action in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []
    assert targets_of(workflow) and targets_of(workflow) <= make_targets()


@in_a_checkout
def test_workflows_run_all_that_ci_runs_on_each_supported_python():
    calls = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "test-lowest" in calls and set(calls) <= targets_of(WORKFLOWS["tests.yml"])
    classifiers = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    for job in WORKFLOWS["tests.yml"]["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == classifiers
    assert SETUP["options"]["python_requires"] == f">={classifiers[0]}"


@in_a_checkout
def test_pre_commit_runs_the_pinned_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {hook["repo"].rsplit("/", 1)[1]: hook["rev"] for hook in hooks}
    pins = read_pins("constraints.txt")
    assert revisions["ruff-pre-commit"] == f"v{pins['ruff']}"
    assert revisions["codespell"] == f"v{pins['codespell']}"


@in_a_checkout
def test_banned_words_are_single_sorted_and_replaced_by_none_of_them():
    lines = (ROOT / SETUP["codespell"]["dictionary"]).read_text(encoding="utf-8").splitlines()
    words = [line.split("->")[0] for line in lines]
    assert words == sorted(set(words)) and all(re.fullmatch("[a-z]+", word) for word in words)
    offered = {word for line in lines for word in re.findall("[a-z]+", line.split("->")[1])}
    assert offered & set(words) == set()


def test_citation_names_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [paper["url"].rsplit("/", 1)[1] for paper in citation["references"]] == ["2311.01343", "2311.09049"]


def test_citation_is_of_this_version_and_licence():
    citation, metadata = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")), SETUP["metadata"]
    assert citation["type"] == "software" and citation["title"] == metadata["name"]
    assert (citation["version"], citation["license"]) == (metadata["version"], metadata["license"])


def test_bibtex_is_that_of_the_model_cards():
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    entries = [system.citation for system in SYSTEMS.values() if system.name in ("cllm4rec", "lcrec")]
    assert len(entries) == 2 and [entry for entry in entries if f"```bibtex\n{entry}\n```" not in page] == []
    assert f"version = {{{SETUP['metadata']['version']}}}" in page


def test_both_packages_ship_their_types():
    for module in (modeling_cllm4rec, tokenization):
        assert Path(module.__file__).with_name("py.typed").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_the_targets():
    # `make test` runs this test: a make inside make prints the folders it enters and leaves.
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = [line.split()[1] for line in listed.splitlines()]
    assert set(targets) == make_targets()


def make_targets() -> set[str]:
    """Return the targets of the Makefile that a user calls."""
    (line,) = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if line.startswith(".PHONY:")]
    return set(line.split()[1:])


def make_variable(name: str) -> list[str]:
    """Return the words of a variable of the Makefile."""
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


def test_every_dependency_of_the_extras_is_pinned():
    pinned = set(read_pins("constraints.txt"))
    todo = requirements_of(*SETUP["options.extras_require"])
    brought: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
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
        "from transformers import AutoModel, AutoTokenizer\nimport modeling_cllm4rec",
        pytest.param("import modeling_cllm4rec", marks=slow),
        pytest.param("from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecModel", marks=slow),
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


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("modeling_cllm4rec.catalogue", "Catalogue", "modeling_cllm4rec.core.catalogue:Catalogue"),
        ("modeling_cllm4rec.modeling_cllm4rec", "CLLM4RecModel", "modeling_cllm4rec.cllm4rec.modeling_cllm4rec:CLLM4RecModel"),
        ("modeling_cllm4rec.item_index", "ItemIndex", "modeling_cllm4rec.lcrec.semantic_ids:SemanticIds"),
        ("modeling_cllm4rec.training.alignment", "AlignArguments", "modeling_cllm4rec.lcrec.arguments:AlignArguments"),
        ("modeling_cllm4rec.training.own_data", "train_recommender", "modeling_cllm4rec.cllm4rec.quickstart:train_recommender"),
    ],
)
def test_old_import_paths_warn_and_work(old, name, new):
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now {new.replace(':', '.')}"):
        found = getattr(importlib.import_module(old), name)
    assert found is resolve(new)


def test_every_old_path_leads_to_a_module():
    for module in _deprecated.MOVED.values():
        importlib.import_module(f"modeling_cllm4rec.{module}")
    for module, name in _deprecated.RENAMED.values():
        assert hasattr(importlib.import_module(f"modeling_cllm4rec.{module}"), name)
