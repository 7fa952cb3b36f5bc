"""Flags shared by the exports of one model."""

from __future__ import annotations

from modeling_cllm4rec.commands.command_line import CommandParser


def export_parser(kind: str, description: str, epilog: str, what: str) -> CommandParser:
    """Return a parser with the flags that all exports of one model have; `what` says which models."""
    flags = CommandParser(
        f"export {kind}",
        description=description,
        epilog=epilog,
    )
    flags.add_argument("--model", required=True, help=f"folder or Hub name of {what}")
    flags.add_argument("--output", required=True, help="output folder; must be new or empty")
    flags.add_argument("--json", action="store_true", help="print the measurements as JSON")
    return flags
