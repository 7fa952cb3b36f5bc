"""`cllm4rec export space`: the page as a folder that is a Hugging Face Space."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

import modeling_cllm4rec
from modeling_cllm4rec.commands.command_line import CommandParser, print_json
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.optional_packages import declared_requirements, require
from modeling_cllm4rec.corpora.atomic_files import atomic_folder, check_new_folder

EPILOG = """example:
  cllm4rec export space --model you/beauty --output space
  cllm4rec export space --model you/beauty --model you/beauty-lcrec --title "Beauty" --output space

Push the models to the Hub first. Then upload the folder:
  hf upload you/beauty-page space . --repo-type space
"""
SOURCES = (".py", ".yaml", ".css", ".js")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
APP = '''"""The page of `cllm4rec app` over models of the Hub."""

from modeling_cllm4rec.app.answers import ShownModels
from modeling_cllm4rec.app.page import build_page, launch

MODELS = {models}

launch(build_page(ShownModels.load(MODELS)))
'''


def space_files(models: list[str], title: str, required: list[str], gradio_version: str) -> dict[str, str]:
    """Return the files of a Space by name, without the package.

    Args:
        models: names on the Hub, `owner/name`.
        title: title of the Space.
        required: lines of requirements.txt.
        gradio_version: version of gradio in the Space.

    Raises:
        InputError: no models, a repeated model, or a name that is not `owner/name`.

    Example:
        >>> sorted(space_files(["you/beauty"], "Beauty", ["torch"], "6.31.0"))
        ['README.md', 'app.py', 'requirements.txt']
    """
    if not models or len(set(models)) < len(models):
        raise InputError(f"models are {models}; give one or more different models")
    for name in models:
        owner, slash, rest = name.partition("/")
        if not (owner and slash and rest) or "/" in rest or Path(name).exists():
            raise InputError(
                f"models: {name} is no name on the Hub (owner/name), and a Space cannot see this machine's folders; "
                "upload the model (model.push_to_hub) and give its name"
            )
    header = {
        "title": title,
        "emoji": "🛍️",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": "3.11",
        "app_file": "app.py",
        "pinned": False,
        "models": models,
        "tags": ["recommendation", "cllm4rec"],
    }
    named = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    about = (
        f"# {title}\n\nFind items, compose a history or take a known user, and look at what {named} recommends and why. "
        "Made with `cllm4rec export space`; the licences of the models and of their data apply.\n"
    )
    return {
        "app.py": APP.format(models=json.dumps(models)),
        "requirements.txt": "\n".join([f"--extra-index-url {CPU_WHEELS}", *required, ""]),
        "README.md": f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{about}",
    }


def package_files() -> dict[str, str]:
    """Return the source of this package by file name, so that the Space needs no release of it."""
    root = Path(modeling_cllm4rec.__file__).parent
    # In a checkout, configs/ and tokenization/ are links, which Path.rglob does not follow.
    folders = os.walk(root, followlinks=True)
    sources = [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(SOURCES)]
    return {path.relative_to(root.parent).as_posix(): path.read_text(encoding="utf-8") for path in sources}


def package_requirements() -> list[str]:
    """Return the requirements of this package and its page as lines of requirements.txt.

    Raises:
        InputError: the package is not installed, so its requirements are unknown.
    """
    always = declared_requirements()
    if not always:
        raise InputError("this package is only found on the path, so its requirements are unknown; run: pip install .")
    return [f"{one.name}{one.specifier}" for one in [*always, *declared_requirements("app")]]


def write_space(folder: str | Path, files: dict[str, str]) -> None:
    """Write the files of a Space into a new or empty folder.

    Raises:
        ExistingFileError: the folder is not empty.
    """
    check_new_folder(folder, "folder")
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target, unique=True) as temporary:
        for name, text in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")


def parser() -> CommandParser:
    """Return the parser of the command's flags."""
    flags = CommandParser(
        "export space",
        description="Write a folder that is a Hugging Face Space: the page of `cllm4rec app` over models of the Hub.",
        epilog=EPILOG,
    )
    flags.add_argument(
        "--model", dest="models", action="append", required=True, help="name on the Hub; repeat it for a second one"
    )
    flags.add_argument("--output", required=True, help="new folder")
    flags.add_argument("--title", help="title of the Space (default: the first model's name)")
    flags.add_argument(
        "--requirement",
        help="how pip finds this package with its extra app, as a line of requirements.txt (default: its source is copied into "
        "the folder, so that no release is needed)",
    )
    flags.add_argument("--json", action="store_true", help="print output and files as JSON")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = parser()
    arguments = flags.parse_args(argv)

    def work() -> None:
        require("gradio", "app", "export space")
        title = arguments.title or arguments.models[0].rpartition("/")[2]
        required = [arguments.requirement] if arguments.requirement else package_requirements()
        files = space_files(arguments.models, title, required, version("gradio"))
        write_space(arguments.output, files if arguments.requirement else {**files, **package_files()})
        if arguments.json:
            print_json({"output": arguments.output, "files": list(files), "source": not arguments.requirement})
            return
        source = "" if arguments.requirement else " and the source of this package"
        print(f"{', '.join(files)}{source} written to {arguments.output}; upload it with")
        print(f"hf upload OWNER/NAME {arguments.output} . --repo-type space")

    return flags.run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
