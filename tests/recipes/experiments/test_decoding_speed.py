"""The script `decoding_speed.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import decoding_speed
import numpy as np
import pytest

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

SMALL = ["--items", "40", "--levels", "3", "--codebook-size", "8", "--users", "5", "--batch-size", "3", "--history", "3"]


def flags_for(*more: str) -> Any:
    return decoding_speed.parser().parse_args([*SMALL, *more])


def test_one_run(tiny_backbone: Path, tmp_path: Path) -> None:
    sizes = ["--beams", "2", "7", "--repeats", "2", "--mask-items", "30", "300", "--mask-rows", "4"]
    output = ["--model", str(tiny_backbone), "--output", str(tmp_path)]
    assert decoding_speed.main([*SMALL, *sizes, *output]) == 0
    report = json.loads((tmp_path / "decode.json").read_text())
    assert list(report["decoding"]) == ["2", "7"]
    for schemes in report["decoding"].values():
        assert tuple(schemes) == decoding_speed.SCHEMES
        assert schemes[decoding_speed.PREFIX_FUNCTION]["ratio"] == 1
        assert all(row["least_ratio"] <= row["ratio"] <= row["most_ratio"] for row in schemes.values())
    assert all(check["largest_difference"] < 1e-3 for check in report["checks"].values())
    assert [row["items"] for row in report["masks"]] == [30, 300] and all(row["load_s"] > 0 for row in report["masks"])
    table = (tmp_path / "decode.md").read_text()
    assert "| 2 | " in table and "| 300 | " in table and str(tiny_backbone.parent) not in table


def test_a_saved_index_is_read(tiny_backbones: dict[str, Path], tmp_path: Path) -> None:
    codes = np.array([[0, 1], [2, 3], [2, 1]], dtype=np.int32)
    SemanticIds(codes, 4).save(tmp_path / "index.parquet", IdMap(["a", "b", "c"], "item_id"))
    setup = decoding_speed.make_setup(
        flags_for("--index", str(tmp_path / "index.parquet"), "--model", str(tiny_backbones["gpt2"]))
    )
    assert np.array_equal(setup.codes, codes) and setup.codebook_size == 4
    assert setup.model.get_input_embeddings().num_embeddings == setup.first_index_token + 8


def test_other_items_are_not_timed(tiny_backbones: dict[str, Path]) -> None:
    setup = decoding_speed.make_setup(flags_for("--model", str(tiny_backbones["gpt2"])))
    prompts = decoding_speed.random_prompts(setup, 3, 3, seed=0)
    schemes = decoding_speed.decoders(setup)
    assert decoding_speed.compare_items(schemes, prompts, 4)["same_lists"] == 1
    unchanged = schemes[decoding_speed.PREFIX_FUNCTION]
    schemes[decoding_speed.PREFIX_FUNCTION] = lambda given_prompts, beams: unchanged(
        [prompt[::-1] for prompt in given_prompts], beams
    )
    with pytest.raises(RuntimeError, match="4 beams: the scores of 'generate, Python function' differ from ours by"):
        decoding_speed.compare_items(schemes, prompts, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--users", "0"], "--users is 0; it must be 1 or more"),
        (["--beams", "41"], "--beams has 41; with 40 items it must be between 1 and that number"),
        (["--levels", "1"], "1 levels of 8 codes cannot identify 40 items"),
    ],
)
def test_bad_flags(tiny_backbones: dict[str, Path], tmp_path: Path, capsys: Any, flags: list[str], message: str) -> None:
    given = [*SMALL, "--model", str(tiny_backbones["gpt2"]), "--output", str(tmp_path / "out"), *flags]
    assert decoding_speed.main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
