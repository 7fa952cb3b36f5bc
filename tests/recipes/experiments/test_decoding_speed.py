"""The command `recipes/benchmark.py decode`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["--items", "40", "--levels", "3", "--codebook-size", "8", "--users", "5", "--batch-size", "3", "--history", "3"]


@pytest.fixture(scope="module")
def recipes() -> Iterator[dict[str, Any]]:
    """The modules of the recipes folder, which is the first on the path when a recipe runs."""
    sys.path.insert(0, str(RECIPES))
    import benchmark
    import decoding_speed

    yield {"benchmark": benchmark, "decoding": decoding_speed}
    sys.path.remove(str(RECIPES))


def asked(recipes: dict[str, Any], *more: str) -> Any:
    return recipes["benchmark"].parser().parse_args(["decode", *SMALL, *more])


def test_one_run(recipes: dict[str, Any], tiny_backbone: Path, tmp_path: Path) -> None:
    sizes = ["--beams", "2", "7", "--repeats", "2", "--mask-items", "30", "300", "--mask-rows", "4"]
    output = ["--model", str(tiny_backbone), "--output", str(tmp_path)]
    assert recipes["benchmark"].main(["decode", *SMALL, *sizes, *output]) == 0
    report = json.loads((tmp_path / "decode.json").read_text())
    assert list(report["decoding"]) == ["2", "7"]
    for schemes in report["decoding"].values():
        assert tuple(schemes) == recipes["decoding"].SCHEMES
        assert schemes[recipes["decoding"].USUAL]["ratio"] == 1
        assert all(row["least_ratio"] <= row["ratio"] <= row["most_ratio"] for row in schemes.values())
    assert all(check["largest_difference"] < 1e-3 for check in report["checks"].values())
    assert [row["items"] for row in report["masks"]] == [30, 300] and all(row["load_s"] > 0 for row in report["masks"])
    table = (tmp_path / "decode.md").read_text()
    assert "| 2 | " in table and "| 300 | " in table and str(tiny_backbone.parent) not in table


def test_a_saved_index_is_read(recipes: dict[str, Any], tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    codes = np.array([[0, 1], [2, 3], [2, 1]], dtype=np.int32)
    SemanticIds(codes, 4).save(tmp_path / "index.parquet", IdMap(["a", "b", "c"], "item_id"))
    world = recipes["decoding"].make_world(
        asked(recipes, "--index", str(tmp_path / "index.parquet"), "--model", str(tiny_backbones["gpt2"]))
    )
    assert np.array_equal(world.codes, codes) and world.codebook_size == 4
    assert world.model.get_input_embeddings().num_embeddings == world.first_index_token + 8


def test_other_items_are_not_timed(recipes: dict[str, Any], tiny_backbones: dict[str, Path]) -> None:
    decoding = recipes["decoding"]
    world = decoding.make_world(asked(recipes, "--model", str(tiny_backbones["gpt2"])))
    prompts = decoding.random_prompts(world, 3, 3, seed=0)
    schemes = decoding.decoders(world)
    assert decoding.compare_items(schemes, prompts, 4)["same_lists"] == 1
    honest = schemes[decoding.USUAL]
    schemes[decoding.USUAL] = lambda asked_prompts, beams: honest([prompt[::-1] for prompt in asked_prompts], beams)
    with pytest.raises(RuntimeError, match="4 beams: the scores of 'generate, Python function' differ from ours by"):
        decoding.compare_items(schemes, prompts, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--users", "0"], "--users is 0; it must be 1 or more"),
        (["--beams", "41"], "--beams has 41; with 40 items it must lie between 1 and that"),
        (["--levels", "1"], "1 levels of 8 codes cannot tell 40 items apart"),
    ],
)
def test_bad_flags(
    recipes: dict[str, Any], tiny_backbones: dict[str, Path], tmp_path: Path, capsys: Any, flags: list[str], message: str
) -> None:
    given = ["decode", *SMALL, "--model", str(tiny_backbones["gpt2"]), "--output", str(tmp_path / "out"), *flags]
    assert recipes["benchmark"].main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
