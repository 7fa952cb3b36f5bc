"""Pages of the Python API for mkdocstrings, and a check that no public name is without a docstring.

Public names are those of a module's `__all__`. The stages of training and `prepare` are functions of modules without one.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = "modeling_cllm4rec"
FOLDER = "reference/api"
ROOMS = {
    "core": "Shared by both systems",
    "cllm4rec": "CLLM4Rec",
    "lcrec": "LC-Rec",
    "tokenization": "Tokenizers",
    "corpora": "Data",
    "training": "Training",
    "evaluation": "Evaluation",
    "baselines": "Baselines",
    "hub": "Loading, cards, the Hub",
    "exports": "Exports",
    "serving": "Serving",
    "commands": "Commands",
}
"""Folder of the package -> title of its page."""
FURTHER = {
    f"{PACKAGE}.systems": ("System", "Stage", "Recipe", "register_system"),
    f"{PACKAGE}.cllm4rec.quickstart": ("train_recommender",),
    f"{PACKAGE}.cllm4rec.pretraining": ("pretrain",),
    f"{PACKAGE}.cllm4rec.finetuning": ("finetune",),
    f"{PACKAGE}.cllm4rec.update": ("update",),
    f"{PACKAGE}.lcrec.indexing": ("index_items",),
    f"{PACKAGE}.lcrec.alignment": ("align",),
    f"{PACKAGE}.lcrec.update": ("update",),
    f"{PACKAGE}.corpora.raw_data": ("prepare",),
    f"{PACKAGE}.corpora.data_folder": ("RecommendationData",),
    f"{PACKAGE}.baselines.registry": ("baseline",),
    f"{PACKAGE}.baselines.hybrid": ("make_hybrid",),
}
"""Module without `__all__` -> its names that the guides use."""


class Module(NamedTuple):
    """A documented module: its dotted name, its file's syntax tree and its public names."""

    name: str
    tree: ast.Module
    public: tuple[str, ...]


def modules() -> list[Module]:
    """Return the modules below the package that have public names, in the order of their names."""
    found = []
    for path in sorted((ROOT / PACKAGE).glob("*/*.py")) + [ROOT / PACKAGE / "systems.py"]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.parent.name == "tokenization" and path.stem == "__init__":
            continue  # it hands on CLLM4RecTokenizer
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = FURTHER.get(name) or declared(tree)
        if public:
            found.append(Module(name, tree, public))
    return found


def declared(tree: ast.Module) -> tuple[str, ...]:
    """Return the names of a module's `__all__`; none where it has no such list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def root_names() -> dict[str, str]:
    """Return the names of `modeling_cllm4rec` and the module that defines each; without `__version__`."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (places,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_MODULE_OF"
    ]
    return {name: places[name] for name in declared(tree) if name != "__version__"}


def definitions(tree: ast.Module) -> dict[str, str | None]:
    """Return the functions, classes and constants of a module, each with its docstring.

    The docstring of a constant is the string literal behind it.
    """
    found: dict[str, str | None] = {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            text = following.value if isinstance(following, ast.Expr) else None
            words = text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else None
            for target in targets:
                for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(one, ast.Name):
                        found[one.id] = words
    return found


def undocumented() -> list[str]:
    """Return the public names without a docstring or without a definition in a documented module."""
    found, documented = [], {module.name: module for module in modules()}
    for module in documented.values():
        if ast.get_docstring(module.tree) is None:
            found.append(module.name)
        here = definitions(module.tree)
        elsewhere = imported(module.tree)
        found += [
            f"{module.name}.{name}" for name in module.public if not (here.get(name) or (name not in here and name in elsewhere))
        ]
    for name, place in root_names().items():
        if place not in documented or name not in documented[place].public:
            found.append(f"{PACKAGE}.{name}")
    return found


def imported(tree: ast.Module) -> set[str]:
    """Return the names that a module hands on from others."""
    return {one.asname or one.name for node in tree.body if isinstance(node, ast.ImportFrom) for one in node.names}


def page(room: str, title: str, found: list[Module]) -> str:
    """Return the page of a folder of the package."""
    parts = [f"# {title}\n"]
    for module in found:
        here = definitions(module.tree)
        members = [name for name in module.public if name in here]
        if not members:
            continue
        parts.append(f"## {module.name.removeprefix(PACKAGE + '.')}\n\n{_first_line(module.tree)}\n")
        parts += [f"::: {module.name}.{name}\n" for name in members]
    return "\n".join(parts)


def _first_line(tree: ast.Module) -> str:
    return (ast.get_docstring(tree) or "").splitlines()[0]


def index(found: list[Module]) -> str:
    """Return the first page: the names of the package itself, and the pages of its folders."""
    names = root_names()
    rows = []
    for name, place in sorted(names.items(), key=lambda row: row[0].lower()):
        tree = next(module.tree for module in found if module.name == place)
        words = (definitions(tree)[name] or "").splitlines()[0]
        rows.append(f"| [`{name}`]({room_of(place)}.md#{place}.{name}) | {words} |")
    rooms = "\n".join(f"- [{title}]({room}.md)" for room, title in ROOMS.items())
    return f"""# Python API

Names of `modeling_cllm4rec`, such as `from modeling_cllm4rec import CLLM4RecConfig`:

| name | |
|---|---|
{chr(10).join(rows)}

`from tokenization import CLLM4RecTokenizer` works in a checkout. `modeling_cllm4rec.__version__` is the installed version.

By folder of the package:

{rooms}
- [The table of systems](systems.md)

Generated from the docstrings.
"""


def room_of(module: str) -> str:
    """Return the page of a module: its folder, or its own name at the top of the package.

    Example:
        >>> room_of("modeling_cllm4rec.core.catalogue"), room_of("modeling_cllm4rec.systems")
        ('core', 'systems')
    """
    return module.split(".")[1]


def pages() -> dict[str, str]:
    """Return the path of each page below docs/ and its text.

    Raises:
        ValueError: a public name has no docstring or no page.
    """
    if missing := undocumented():
        raise ValueError(f"public names without a docstring or a page: {', '.join(missing)}")
    found = modules()
    rooms = {
        room: page(room, title, [module for module in found if room_of(module.name) == room])
        for room, title in {**ROOMS, "systems": "The table of systems"}.items()
    }
    return {f"{FOLDER}/index.md": index(found), **{f"{FOLDER}/{room}.md": text for room, text in rooms.items()}}
