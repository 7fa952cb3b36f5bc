"""Count the code of a checkout: files, lines by kind, docstrings of public names, switches on a system's name.

python recipes/experiments/code_size.py [FOLDER]
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

PARTS = {"library": ["modeling_cllm4rec", "tokenization"], "recipes": ["recipes"], "tests": ["tests"]}
SWITCH = re.compile(
    r"isinstance\([^)]*(LCRec|CLLM4Rec)|model_type ==|system == \"(cllm4rec|lcrec)|(==|in) \(?\"(lcrec|cllm4rec|align)\""
    r"|\"(lcrec|cllm4rec|align)\" (if|in)"
)
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT)


def files(root: Path, folders: list[str]) -> list[Path]:
    """Return the Python files that git tracks in some folders, frozen folders excluded."""
    listed = subprocess.run(["git", "ls-files", "--", *folders], cwd=root, capture_output=True, text=True, check=True).stdout
    return [root / name for name in listed.split("\n") if name.endswith(".py") and "saved_folders" not in name]


def count(path: Path) -> dict[str, int]:
    """Return the lines of one file by kind, and its public names with and without a docstring."""
    text = path.read_text(encoding="utf-8")
    strings: set[int] = set()
    public = documented = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            public += 1
            documented += ast.get_docstring(node) is not None
    code: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"# (noqa|type:|doctest)", token.string):
            comments += 1
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    switches = sum(bool(SWITCH.search(line)) for line in text.splitlines())
    found = {"code": len(code - strings), "docstring": len(strings), "comments": comments}
    return {**found, "public": public, "documented": documented, "switches": switches}


def main() -> None:
    """Print a row for the library, the recipes and the tests."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    print("| part | files | code lines | docstring lines | comments | public names with a docstring | switches on a system |")
    print("|---|---|---|---|---|---|---|")
    for part, folders in PARTS.items():
        counted = [count(path) for path in files(root, folders)]
        total = {name: sum(one[name] for one in counted) for name in counted[0]}
        comments = f"{total['comments']} ({100 * total['comments'] / total['code']:.1f}%)"
        documented = f"{100 * total['documented'] / total['public']:.0f}%"
        cells = [part, len(counted), f"{total['code']:,}", f"{total['docstring']:,}", comments, documented, total["switches"]]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
