"""An extension of griffe: the section `Example:` of a docstring is read as `Examples:`, the name that griffe knows."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ReadExamples(griffe.Extension):
    """Rename the section, so that doctests become blocks of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename it in one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
