"""`cllm4rec update`: go on training on new interactions; old users and items keep what was learned, new ones are added."""

from __future__ import annotations

from modeling_cllm4rec.commands.stages import stage_command

ABOUT = (
    "Go on training a CLLM4Rec on a data folder with all of its users and items, and maybe more: prepare it from all "
    "interactions, old and new, with --keep-all-items where an old item may have lost its last one. Of a YAML file it takes the "
    "keys of finetune."
)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    from modeling_cllm4rec.cllm4rec.update import UpdateArguments, update

    flags = "--start runs/mine --data data/mine-now --output runs/mine-now"
    return stage_command(UpdateArguments, "finetune", update, ABOUT, flags, argv, name="update")
