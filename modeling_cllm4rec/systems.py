"""The recommender systems: one row a system. Code outside a system's own folder reads these rows and knows no system by name.

A row holds names only, so that reading it imports neither torch nor transformers. What a system's model can do is declared by
the class attributes of its `RecommenderModel`; a row says where its classes and its training stages are, and how its results
are presented.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from modeling_cllm4rec.core.errors import InputError

if TYPE_CHECKING:
    from modeling_cllm4rec.core.recommender import RecommenderModel


@dataclass(frozen=True)
class Stage:
    """A training stage, which is also a command.

    Attributes:
        name: name of the command and of the stage's record in `training.json`.
        section: the stage's key in a YAML file.
        arguments: `module:Class` of its dataclass of arguments, with `data` and `output`.
        run: `module:function` from arguments to (what was made, its `Progress`).
        summary: one line for the list of commands.
        description: one sentence for `--help`, with the paper's section.
        example: flags for the example of `--help`.
        folder: folder below `output` that holds the result; empty where it is `output` itself.
        previous: name of the argument that takes the folder of the stage before; empty for the first stage.
    """

    name: str
    section: str
    arguments: str
    run: str
    summary: str
    description: str
    example: str
    folder: str = ""
    previous: str = ""


@dataclass(frozen=True)
class Recipe:
    """A named way to train a system, as a row of the benchmark.

    Attributes:
        title: name in tables.
        summary: the trained parts, in a few words.
    """

    title: str
    summary: str = "trained by its recipe"


class RecipeVariant(NamedTuple):
    """A recipe with some settings replaced, as a row of an ablation study.

    Attributes:
        about: the difference, in a few words.
        recipe: section of a stage -> its settings; None leaves a stage out.
        anonymous: the user is withheld from the model.
    """

    about: str
    recipe: Mapping[str, dict[str, Any] | None]
    anonymous: bool = False


@dataclass(frozen=True)
class System:
    """A recommender system.

    Attributes:
        name: `model_type` of its configuration and `system` of its model class.
        title: name in tables and on pages.
        config, model, causal_lm, tokenizer: `module:Class`; empty where there is none.
        stages: its training stages, in order.
        updates: further stages that continue a finished model. Systems may share their names: the command of that name runs the
            stage of the system whose model it continues.
        recipes: names of benchmark recipes -> how they are shown; the system's own name among them.
        variants: `module:function` from a recipe (section -> settings) to its ablation study, name -> `RecipeVariant`; empty
            where there is none.
        selection: metrics whose sum selects the epoch that is kept.
        test_history: histories that a model is given on the split `test` by its paper: `train` or `train+validation`.
        card_tag, card_about, card_use: tag, first sentence and intended use in the model card.
        query_task: the task, an entry of `tasks` of a stage, that trains answers to queries; empty where models read none.
        card_use_untrained: intended use of a model that was trained without that task.
        citation: the paper as BibTeX, for the model card; empty for none.
        pipeline_tag: task of the Hub's list. It has none for recommendation; of those that it has, `text-ranking` is the nearest:
            a list of candidates in the order of their fit to a prompt.
        recommend_early: `module:function` (model, settings of the first stage, folder) that lets a model recommend whose last
            stage was left out; empty where it cannot.
        writer: `module:function` (model, folder) -> an object with `write(item, user)`, or None; empty where the system writes no
            sentences about items.
        review_queries: `module:function` (reviews, brands of their items) -> a query of each review, empty where it says nothing,
            for the evaluation of search; empty where models read no queries.
        add_items: `module:function` (model, tokenizer, items, **settings) -> tokenizer, adds items by their texts; empty where
            the system cannot.
        add_items_settings: names of the settings that `add_items` takes.
    """

    name: str
    title: str
    config: str
    model: str
    stages: tuple[Stage, ...]
    recipes: dict[str, Recipe]
    card_tag: str
    card_about: str
    card_use: str
    query_task: str = ""
    card_use_untrained: str = ""
    citation: str = ""
    pipeline_tag: str = "text-ranking"
    causal_lm: str = ""
    tokenizer: str = ""
    updates: tuple[Stage, ...] = ()
    variants: str = ""
    selection: tuple[str, ...] = ("ndcg@10",)
    test_history: str = "train"
    recommend_early: str = ""
    writer: str = ""
    review_queries: str = ""
    add_items: str = ""
    add_items_settings: tuple[str, ...] = ()


SYSTEMS: dict[str, System] = {}
AFTER_REGISTRATION: list[Callable[[], None]] = []
"""Functions to call when a row was added, such as the one that registers the Auto classes."""


def register_system(system: System) -> System:
    """Add a row.

    Raises:
        InputError: the name, a stage or a recipe is taken.

    Example:
        >>> register_system(SYSTEMS["lcrec"])
        Traceback (most recent call last):
        ...
        modeling_cllm4rec.core.errors.InputError: system 'lcrec': the name 'lcrec' is taken; choose another
    """
    own = [stage.name for stage in system.stages]
    taken = {name for row in SYSTEMS.values() for name in (row.name, *stage_names(row), *row.recipes)}
    updates = {stage.name for row in SYSTEMS.values() for stage in row.updates}
    for name in (system.name, *own, *(stage.name for stage in system.updates if stage.name not in updates), *system.recipes):
        if name in taken:
            raise InputError(f"system {system.name!r}: the name {name!r} is taken; choose another")
    SYSTEMS[system.name] = system
    for update in AFTER_REGISTRATION:
        update()
    return system


def import_registered() -> None:
    """Import the modules in the environment variable CLLM4REC_SYSTEMS, separated by commas: they register systems of their own.

    Every process that imports this package then knows these systems, also the workers of a benchmark.

    Raises:
        InputError: there is no such module.
    """
    for module in filter(None, os.environ.get("CLLM4REC_SYSTEMS", "").split(",")):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise InputError(
                f"CLLM4REC_SYSTEMS names {module!r}, and there is no such module; put its folder on PYTHONPATH"
            ) from error


def stage_names(system: System) -> list[str]:
    """Return the names of a system's stages, those that continue a finished model included."""
    return [stage.name for stage in (*system.stages, *system.updates)]


def resolve(target: str) -> Any:
    """Import what `module:name` names.

    Example:
        >>> resolve("json:dumps")({"a": 1})
        '{"a": 1}'
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def system_of(model: RecommenderModel) -> System:
    """Return the row of a model.

    Raises:
        InputError: its system is not registered.
    """
    if model.system not in SYSTEMS:
        raise InputError(f"the system {model.system!r} of {type(model).__name__} is not registered; see systems.register_system")
    return SYSTEMS[model.system]


def system_of_stages(stages: Iterable[str]) -> System:
    """Return the row of the system that has the last of these stages, and most of the others.

    Raises:
        InputError: no system has it.
    """
    stages = list(stages)
    last = stages[-1:]
    having = [system for system in SYSTEMS.values() if last and last[0] in stage_names(system)]
    if having:
        return max(having, key=lambda system: len({*stages} & {*stage_names(system)}))
    raise InputError(
        f"no system has a stage {last}; the stages are {[name for row in SYSTEMS.values() for name in stage_names(row)]}"
    )


def system_of_recipe(recipe: str) -> System:
    """Return the row of the system that a recipe trains.

    Raises:
        InputError: no system has it.
    """
    for system in SYSTEMS.values():
        if recipe in system.recipes:
            return system
    raise InputError(
        f"there is no recipe {recipe!r}; the recipes are {[name for row in SYSTEMS.values() for name in row.recipes]}"
    )


register_system(
    System(
        name="cllm4rec",
        title="CLLM4Rec",
        config="modeling_cllm4rec.cllm4rec.configuration_cllm4rec:CLLM4RecConfig",
        model="modeling_cllm4rec.cllm4rec.modeling_cllm4rec:CLLM4RecForRecommendation",
        causal_lm="modeling_cllm4rec.cllm4rec.modeling_cllm4rec:CLLM4RecForCausalLM",
        tokenizer="modeling_cllm4rec.tokenization.tokenization_cllm4rec:CLLM4RecTokenizer",
        stages=(
            Stage(
                name="pretrain",
                section="pretrain",
                arguments="modeling_cllm4rec.cllm4rec.arguments:PretrainArguments",
                run="modeling_cllm4rec.cllm4rec.pretraining:pretrain",
                summary="CLLM4Rec: data folder -> pretrained model",
                description="Pretrain CLLM4Rec on a data folder: content warm-up, then alternating L and C passes (sections 3.2 "
                "and 3.3).",
                example="--data data/mine --backbone gpt2 --output runs/mine",
                folder="pretrained",
            ),
            Stage(
                name="finetune",
                section="finetune",
                arguments="modeling_cllm4rec.cllm4rec.arguments:FinetuneArguments",
                run="modeling_cllm4rec.cllm4rec.finetuning:finetune",
                summary="CLLM4Rec: pretrained model -> recommender",
                description="Finetune a pretrained CLLM4Rec for recommendation: masked history in, held-out items out (section "
                "3.4).",
                example="--data data/mine --output runs/mine",
                previous="start",
            ),
        ),
        updates=(
            Stage(
                name="update",
                section="finetune",
                arguments="modeling_cllm4rec.cllm4rec.update:UpdateArguments",
                run="modeling_cllm4rec.cllm4rec.update:update",
                summary="a finished model of either system: continue training on new interactions",
                description="Continue training a CLLM4Rec on a data folder with all of its users and items, and maybe more: "
                "prepare it from all interactions, old and new, with --keep-all-items where an old item may have lost its last "
                "one. Of a YAML file it takes the keys of finetune.",
                example="--start runs/mine --data data/mine-now --output runs/mine-now",
                previous="start",
            ),
        ),
        recipes={"cllm4rec": Recipe("CLLM4Rec")},
        card_tag="cllm4rec",
        card_about="A CLLM4Rec recommender ([arXiv 2311.01343](https://arxiv.org/abs/2311.01343)): a causal language model "
        "with a token for each user and each item; one forward pass scores the whole catalogue.",
        card_use="for its known users by their ids, for other users by a history of item ids. It reads no words when it "
        "recommends",
        citation="""@inproceedings{zhu2024collaborative,
  title     = {Collaborative Large Language Model for Recommender Systems},
  author    = {Zhu, Yaochen and Wu, Liang and Guo, Qi and Hong, Liangjie and Li, Jundong},
  booktitle = {Proceedings of the ACM Web Conference 2024},
  year      = {2024},
  url       = {https://arxiv.org/abs/2311.01343}
}""",
        variants="modeling_cllm4rec.cllm4rec.ablation:variants",
        selection=("recall@20", "recall@40", "ndcg@100"),
        recommend_early="modeling_cllm4rec.cllm4rec.pretraining:recommend_early",
        writer="modeling_cllm4rec.cllm4rec.content_writer:content_writer",
        add_items="modeling_cllm4rec.cllm4rec.new_item_training:add_items",
        add_items_settings=("start", "prediction_scale", "settling"),
    )
)

register_system(
    System(
        name="lcrec",
        title="LC-Rec",
        config="modeling_cllm4rec.lcrec.configuration_lcrec:LCRecConfig",
        model="modeling_cllm4rec.lcrec.modeling_lcrec:LCRecForRecommendation",
        causal_lm="modeling_cllm4rec.lcrec.modeling_lcrec:LCRecForCausalLM",
        stages=(
            Stage(
                name="index-items",
                section="index",
                arguments="modeling_cllm4rec.lcrec.arguments:IndexArguments",
                run="modeling_cllm4rec.lcrec.indexing:index_items",
                summary="LC-Rec: item texts -> semantic IDs",
                description="Give every item a semantic ID: texts to embeddings to unique codes (section III-B of the paper).",
                example="--data data/mine --encoder gpt2 --output runs/mine-index",
            ),
            Stage(
                name="align",
                section="align",
                arguments="modeling_cllm4rec.lcrec.arguments:AlignArguments",
                run="modeling_cllm4rec.lcrec.alignment:align",
                summary="LC-Rec: semantic IDs and language model -> recommender",
                description="Tune a language model on tasks between semantic IDs and language (section III-C of the paper).",
                example="--data data/mine --index runs/mine-index --backbone gpt2 --output runs/mine-lcrec",
                previous="index",
            ),
        ),
        updates=(
            Stage(
                name="update",
                section="update",
                arguments="modeling_cllm4rec.lcrec.update:UpdateArguments",
                run="modeling_cllm4rec.lcrec.update:update",
                summary="a finished model of either system: continue training on new interactions",
                description="Continue the alignment of an LC-Rec on a data folder with all of its items, and maybe more: prepare "
                "it from all interactions, old and new, with --keep-all-items. Old items keep their semantic IDs, new ones are "
                "encoded by the model's own indexer. drift.json says how the new interactions differ. Of a YAML file it takes "
                "the keys of update.",
                example="--start runs/mine-lcrec --data data/mine-now --output runs/mine-lcrec-now",
                previous="start",
            ),
        ),
        recipes={
            "lcrec": Recipe("LC-Rec"),
            "lcrec-vanilla": Recipe("LC-Rec, vanilla ids", "the recipe of LC-Rec with a token of its own for each item"),
            "lcrec-cid": Recipe(
                "LC-Rec, co-occurrence ids", "the recipe of LC-Rec with semantic IDs by clusters of co-occurrence, as P5-CID"
            ),
            "tiger": Recipe(
                "TIGER-like",
                "semantic ID tokens and sequences only, a small model from random weights; as TIGER, but a decoder alone",
            ),
        },
        card_tag="lc-rec",
        card_about="An LC-Rec recommender ([arXiv 2311.09049](https://arxiv.org/abs/2311.09049)): a causal language model that "
        "writes the semantic ID of the next item, by a search that can only end at real items.",
        card_use="for any user, by a history of item ids, by words that say what is looked for, or by both",
        query_task="itemsearch",
        card_use_untrained="for any user, by a history of item ids. It was not trained to answer words (the task `itemsearch` "
        "was left out), so its answers to them are guesses",
        citation="""@inproceedings{zheng2024adapting,
  title     = {Adapting Large Language Models by Integrating Collaborative Semantics for Recommendation},
  author    = {Zheng, Bowen and Hou, Yupeng and Lu, Hongyu and Chen, Yu and Zhao, Wayne Xin and Chen, Ming and Wen, Ji-Rong},
  booktitle = {2024 IEEE 40th International Conference on Data Engineering},
  year      = {2024},
  url       = {https://arxiv.org/abs/2311.09049}
}""",
        variants="modeling_cllm4rec.lcrec.ablation:variants",
        selection=("ndcg@10",),
        review_queries="modeling_cllm4rec.lcrec.review_queries:queries_of_reviews",
        test_history="train+validation",
        add_items="modeling_cllm4rec.lcrec.new_items:add_items",
        add_items_settings=("encoder",),
    )
)
