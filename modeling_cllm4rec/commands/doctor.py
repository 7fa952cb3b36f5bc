"""`cllm4rec doctor`: versions, devices, extras, room, and what is known not to work together."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from packaging.requirements import Requirement

from modeling_cllm4rec.commands.command_line import RUN_FAILED, CommandParser, print_json
from modeling_cllm4rec.core.optional_packages import DISTRIBUTION, declared_extras, declared_requirements, version_of

EPILOG = """example:
  cllm4rec doctor
  cllm4rec doctor --json | python -m json.tool

Exit code 0: nothing is in the way of training and recommending. 1: something is, and it is said what to do.
"""
GB = 10**9
LEAST_MEMORY, LEAST_DISK = 2 * GB, 5 * GB
"""Free bytes below which doctor says a word: a small model needs about as much."""
SHADOWED = ("accelerate", "datasets", "evaluate", "peft", "tokenizers", "torch", "transformers")
"""Libraries that a file of the same name in the working folder would hide from every script in it."""


CONTRIBUTORS = ("dev", "docs", "peers", "release")
"""Extras for work on this package: no user lacks them, so the report names them only where they are present."""


def examine(folder: Path) -> dict[str, Any]:
    """Everything that doctor knows.

    Args:
        folder: the working folder: where runs are written, and where files may hide libraries.

    Returns:
        `versions`, `machine`, `devices`, `threads`, `free_bytes`, `extras`, and `problems`: each with `problem`, `what_to_do` and
        `serious`, whether work is impossible or wrong with it.
    """
    required = declared_requirements()
    devices, cuda = find_devices()
    threads = find_threads()
    free = {"memory": psutil.virtual_memory().available, "disk": shutil.disk_usage(folder).free}
    problems = [
        *wrong_versions(required),
        *wrong_devices(cuda),
        *wrong_accelerate(accelerate_settings()),
        *hidden_libraries(folder),
        *little_room(free, threads),
    ]
    return {
        "versions": {
            "cllm4rec": version_of(DISTRIBUTION),
            "python": platform.python_version(),
            **{one.name: version_of(one.name) for one in required},
        },
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "devices": devices,
        "threads": threads,
        "free_bytes": free,
        "extras": {name: examine_extra(declared_requirements(name)) for name in declared_extras()},
        "problems": problems,
    }


def examine_extra(needed: list[Requirement]) -> dict[str, Any]:
    """Whether all of an extra is there, what is missing, and the command that installs it (None: nothing is)."""
    missing = [one for one in needed if not _satisfied(one)]
    install = shlex.join(["pip", "install", *(f"{one.name}{one.specifier}" for one in missing)])
    return {"present": not missing, "missing": [one.name for one in missing], "install": install if missing else None}


def _satisfied(requirement: Requirement) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def wrong_versions(required: list[Requirement]) -> Iterator[dict[str, Any]]:
    """Dependencies that are missing or of another version than this package works with."""
    if not required:
        yield problem(
            f"{DISTRIBUTION} is not installed, only found on the path, so its requirements are unknown", "run: pip install ."
        )
    for one in required:
        if not _satisfied(one):
            found = version_of(one.name) or "not installed"
            wanted = f"{one.name}{one.specifier}"
            yield problem(f"{one.name} is {found}; {one.specifier} is needed", f"run: pip install '{wanted}'", True)
    if version_of("optimum-onnx") is not None:
        yield problem(
            "optimum-onnx is installed, which is made for transformers 4 and pulls it back in",
            "run: pip uninstall optimum-onnx; models are exported without it",
        )


def find_devices() -> tuple[list[str], dict[str, Any]]:
    """Describe torch's devices; for CUDA also the version of the build, whether it works, and whether a driver exists."""
    try:
        import torch
    except ImportError:  # said among the versions
        return [], {"built_for": None, "works": False, "driver": False}
    works = torch.cuda.is_available()
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())] if works else []
    devices = [f"cuda:{number} {one.name}, {one.total_memory / GB:.0f} GB" for number, one in enumerate(names)]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"], {
        "built_for": torch.version.cuda,
        "works": works,
        "driver": shutil.which("nvidia-smi") is not None,
    }


def wrong_devices(cuda: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Find a torch that does not fit the machine."""
    cpu_build = "pip install --index-url https://download.pytorch.org/whl/cpu torch"
    if cuda["driver"] and not cuda["works"]:
        built = f"is built for CUDA {cuda['built_for']}, which this driver does not run" if cuda["built_for"] else "knows no CUDA"
        yield problem(f"there is an NVIDIA driver, but torch {built}: training runs on the CPU", "see pytorch.org/get-started")
    elif cuda["built_for"] and not cuda["works"]:
        yield problem(
            f"torch is built for CUDA {cuda['built_for']}, but there is no such device: it works, and takes several GB of disk",
            f"to save them: {cpu_build}",
        )


def find_threads() -> dict[str, Any]:
    """Processors that this process may use, and what it would use."""
    try:
        import torch
    except ImportError:  # said among the versions
        threads = None
    else:
        threads = torch.get_num_threads()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"processors": allowed, "torch": threads, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def accelerate_settings() -> dict[str, Any]:
    """Read the settings of `accelerate config`, or nothing."""
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    file = Path(home, "accelerate", "default_config.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content if isinstance(content, dict) else {}


def wrong_accelerate(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Find settings of `accelerate config` that `accelerate launch` does not follow."""
    processes = settings.get("num_processes", 1)
    if settings.get("use_cpu") and processes > 1:
        yield problem(
            f"accelerate is configured for {processes} processes on CPU, of which `accelerate launch` starts one without a word",
            f"launch with: ACCELERATE_USE_CPU=true torchrun --nproc_per_node {processes} -m modeling_cllm4rec COMMAND ...",
        )
    kind = settings.get("distributed_type", "NO")
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU"):
        yield problem(
            f"accelerate is configured for {kind}, but parameters must be whole on every process",
            "run `accelerate config` again and choose plain data parallelism, or pass --config_file to accelerate launch",
            True,
        )


def hidden_libraries(folder: Path) -> Iterator[dict[str, Any]]:
    """Files in the working folder that are imported in place of a library."""
    for name in SHADOWED:
        if (folder / f"{name}.py").exists():
            yield problem(
                f"{name}.py in {folder} hides the library {name} from every script of that folder",
                "give the file another name",
                True,
            )


def little_room(free: dict[str, int], threads: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Little memory or disk, or more threads than processors."""
    for name, least in (("memory", LEAST_MEMORY), ("disk", LEAST_DISK)):
        if free[name] < least:
            yield problem(f"{free[name] / GB:.1f} GB of {name} are free", f"make room: a small model wants {least / GB:.0f} GB")
    if threads["torch"] is not None and threads["torch"] > threads["processors"]:
        yield problem(
            f"torch would use {threads['torch']} threads on {threads['processors']} processors, which is slower than as many",
            f"set OMP_NUM_THREADS={threads['processors']}",
        )


def problem(what: str, what_to_do: str, serious: bool = False) -> dict[str, Any]:
    """One finding."""
    return {"problem": what, "what_to_do": what_to_do, "serious": serious}


def report(found: dict[str, Any]) -> str:
    """Format the findings as text."""
    versions = "\n".join(f"  {name:<16} {version or 'not installed'}" for name, version in found["versions"].items())
    extras = "\n".join(
        f"  {name:<16} {'present' if one['present'] else 'missing ' + ', '.join(one['missing']) + ': ' + one['install']}"
        for name, one in found["extras"].items()
        if one["present"] or name not in CONTRIBUTORS
    )
    threads, free = found["threads"], found["free_bytes"]
    problems = "\n".join(
        f"  {'!' if one['serious'] else '-'} {one['problem']}\n    {one['what_to_do']}" for one in found["problems"]
    )
    return f"""versions
{versions}
machine
  {found["machine"]}
  devices          {"; ".join(found["devices"])}
  threads          torch {threads["torch"]}, processors {threads["processors"]}, OMP_NUM_THREADS {threads["OMP_NUM_THREADS"]}
  free             {free["memory"] / GB:.1f} GB of memory, {free["disk"] / GB:.1f} GB of disk
extras
{extras or "  unknown: not installed"}
problems
{problems or "  none"}"""


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, or 1 when something serious is in the way."""
    parser = CommandParser(
        "doctor",
        description="Say what is installed, what is missing, and what will not work.",
        epilog=EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args(argv)
    found = examine(Path.cwd())
    code = parser.run(arguments, lambda: print_json(found) if arguments.json else print(report(found)))
    return RUN_FAILED if any(one["serious"] for one in found["problems"]) else code
