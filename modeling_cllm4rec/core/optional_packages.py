"""Packages of the extras: check that one is installed in a version that works, before it is imported."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modeling_cllm4rec.core.errors import MissingPackageError

DISTRIBUTION = "cllm4rec"
"""Name of this package on an index, for the advice to install an extra."""


def require(package: str, extra: str | None, purpose: str, otherwise: str = "") -> None:
    """Check that an optional package is installed in a version that this package works with.

    The bounds of the version are those that the installed distribution declares. Without one, as on a bare PYTHONPATH, any
    version passes, and the message names the package in place of the extra.

    Args:
        package: import name, such as `onnxruntime`.
        extra: extra of this package that brings it; None for a package of no extra, such as that of a user's own baseline.
        purpose: first words of the message: an argument, a command or a feature that needs the package.
        otherwise: another way out, for the end of the message.

    Raises:
        MissingPackageError: the package is not installed, or in a version outside the bounds; the message has the command that
            installs it.

    Example:
        >>> require("numpy", None, "this example")
        >>> require("no_such_package", None, "this example")
        Traceback (most recent call last):
            ...
        modeling_cllm4rec.core.errors.MissingPackageError: this example needs no-such-package, which is not installed; run: \
pip install no-such-package
    """
    name = canonicalize_name(package)
    needed = Requirement(name)
    if extra is not None:
        needed = next((one for one in declared_requirements(extra) if canonicalize_name(one.name) == name), needed)
    installed = version_of(name)
    if sys.modules.get(package) is None and find_spec(package) is None:
        found = "which is not installed"
    elif installed is not None and not needed.specifier.contains(installed, prereleases=True):
        found = f"but version {installed} is installed"
    else:
        return
    # pip adds an extra to the installed distribution. Were that not installed, pip would ask an index for its name, which no
    # index has yet and anyone could register there.
    by_extra = extra is not None and version_of(DISTRIBUTION) is not None
    command = f'pip install "{DISTRIBUTION}[{extra}]"' if by_extra else f"pip install {name}"
    way_out = f", or {otherwise}" if otherwise else ""
    raise MissingPackageError(f"{purpose} needs {needed.name}{needed.specifier}, {found}; run: {command}{way_out}")


def declared_requirements(extra: str = "") -> list[Requirement]:
    """Return what the installed distribution requires: always, or only with an extra. Empty when it is not installed.

    Example:
        >>> declared_requirements("no such extra")
        []
    """
    try:
        lines = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    always = [one for one in lines if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [one for one in lines if one not in always and one.marker is not None and one.marker.evaluate({"extra": extra})]


def declared_extras() -> list[str]:
    """Return the names of the extras of the installed distribution, sorted. Empty when it is not installed."""
    try:
        return sorted(importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])
    except importlib.metadata.PackageNotFoundError:
        return []


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, or None.

    Example:
        >>> version_of("no-such-package") is None
        True
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["DISTRIBUTION", "declared_extras", "declared_requirements", "require", "version_of"]
