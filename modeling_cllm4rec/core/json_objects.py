"""JSON objects of folders, read with one kind of error.

This file is self-contained because it is copied into every saved folder, and imports no large package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import InputError

MOST_JSON_BYTES = 1 << 26
"""Larger files are refused: no JSON object of a folder comes near."""
COPY_AGAIN = "copy or download the folder again"
"""What to do with a folder that came in pieces, for messages."""


def read_json(path: str | Path, advice: str = COPY_AGAIN) -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        path: the file; advice: what to do where it cannot be read, for the message.

    Raises:
        InputError: it is damaged, deeply nested, larger than 64 MB, or no object.
    """
    try:
        if Path(path).stat().st_size > MOST_JSON_BYTES:
            raise InputError(f"{path} cannot be read (it is larger than {MOST_JSON_BYTES >> 20} MB); {advice}")
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{path} cannot be read (it is nested too deeply); {advice}") from error
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no text
        raise InputError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read (it is no JSON object); {advice}")
    return found


__all__ = ["COPY_AGAIN", "read_json"]
