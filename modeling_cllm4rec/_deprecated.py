"""Old import paths of public names, kept for one minor release: `modeling_cllm4rec.catalogue` and its like.

A finder answers for the old modules. What is imported from one of them comes from its new place, with a `DeprecationWarning`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "modeling_cllm4rec"
MOVED = {
    "catalogue": "core.catalogue",
    "configuration_backbone": "core.configuration_backbone",
    "configuration_cllm4rec": "cllm4rec.configuration_cllm4rec",
    "configuration_lcrec": "lcrec.configuration_lcrec",
    "configuration_rqvae": "lcrec.configuration_rqvae",
    "constrained_decoding": "lcrec.constrained_decoding",
    "handler": "core.handler",
    "index_prompts": "lcrec.prompts",
    "index_search": "lcrec.beam_search",
    "item_index": "lcrec.semantic_ids",
    "losses": "core.losses",
    "modeling_cllm4rec": "cllm4rec.modeling_cllm4rec",
    "modeling_lcrec": "lcrec.modeling_lcrec",
    "modeling_rqvae": "lcrec.modeling_rqvae",
    "prompt_assembly": "core.prompt_assembly",
    "top_items": "core.top_items",
    "corpora.alignment": "lcrec.alignment_corpus",
    "corpora.documents": "cllm4rec.documents",
    "corpora.intentions": "lcrec.intentions",
    "corpora.matching": "corpora.id_checks",
    "corpora.prompts": "cllm4rec.prompts",
    "corpora.small_world": "corpora.synthetic",
    "evaluation.index_report": "lcrec.semantic_id_report",
    "evaluation.search": "evaluation.searching",
    "growing": "cllm4rec.catalogue_changes",
    "hub.repeating": "hub.reproduction",
    "language_model": "core.language_model",
    "recommending": "core.recommender",
    "saved_folder": "core.saved_folder",
    "training.finishing": "hub.finishing",
    "training.growth": "cllm4rec.new_item_training",
    "training.index_kinds": "lcrec.index_methods",
    "training.objectives": "cllm4rec.objectives",
    "training.teaching": "baselines.soft_targets",
    "training.updating": "cllm4rec.update",
    "training.own_data": "cllm4rec.quickstart",
    "training.pretraining": "cllm4rec.pretraining",
    "training.finetuning": "cllm4rec.finetuning",
    "training.alignment": "lcrec.alignment",
    "training.indexing": "lcrec.indexing",
}
"""Old module -> new module, both below the package."""
ARGUMENTS = {
    "PretrainArguments": "cllm4rec.arguments",
    "FinetuneArguments": "cllm4rec.arguments",
    "AlignArguments": "lcrec.arguments",
    "IndexArguments": "lcrec.arguments",
}
RENAMED = {
    "ItemIndex": ("lcrec.semantic_ids", "SemanticIds"),
    "PermittedItems": ("lcrec.constrained_decoding", "CandidateItems"),
    "top_permitted_items": ("core.top_items", "top_candidates"),
    "RecommendsItems": ("core.recommender", "RecommenderModel"),
    "SavedFolderModel": ("core.recommender", "RecommenderModel"),
    "Settling": ("cllm4rec.new_item_training", "NewRowTraining"),
    "SmallWorld": ("corpora.synthetic", "SyntheticDataset"),
    "Weights": ("cllm4rec.objectives", "RegularizationConfig"),
    "assemble": ("core.prompt_assembly", "build_input_ids"),
    "check_whole": ("core.language_model", "reject_adapter"),
    "cut": ("cllm4rec.prompts", "tokenize_template"),
    "index_prompt": ("lcrec.prompts", "semantic_id_prompt"),
    "index_report": ("lcrec.semantic_id_report", "semantic_id_report"),
    "index_token": ("tokenization.tokenization_lcrec", "semantic_id_token"),
    "index_tokens": ("lcrec.prompts", "semantic_id_tokens"),
    "make_small_world": ("corpora.synthetic", "make_synthetic_dataset"),
    "next_item_pieces": ("cllm4rec.prompts", "next_item_segments"),
    "text_column": ("core.catalogue", "text_column"),
    "vanilla_index": ("lcrec.index_methods", "vanilla_semantic_ids"),
    **{name: (module, name) for name, module in ARGUMENTS.items()},
}
"""Old name -> new module and name, for names that did not move with their module or were renamed."""


def install() -> None:
    """Let the old paths be imported."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())


class _OldModules(Loader):
    """Find and load the modules in `MOVED`, after all other finders: a module that exists is never replaced."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        prefix, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if prefix == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"{PACKAGE}.{MOVED[old.partition('.')[2]]}"

        def look_up(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {old!r} has no attribute {name!r}")
            where, now = RENAMED.get(name, (new.partition(".")[2], name))
            found = getattr(importlib.import_module(f"{PACKAGE}.{where}"), now)
            warnings.warn(
                f"{old}.{name} is now {PACKAGE}.{where}.{now}; the old path goes with version 0.2",
                DeprecationWarning,
                stacklevel=2,
            )
            return found

        module.__getattr__ = look_up  # type: ignore[method-assign]
