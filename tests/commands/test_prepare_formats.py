"""`cllm4rec prepare --format`: data folders from the files of others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from modeling_cllm4rec.commands.prepare import main
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds

PAIRS = [(user, (user + step) % 8, step) for user in range(5) for step in range(5)]
HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


def lines(pairs: list[tuple[int, int, int]]) -> str:
    return HEAD + "".join(f"u{user}\t{item}\t{step}\n" for user, item, step in pairs)


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    folder = tmp_path / "recbole"
    folder.mkdir()
    (folder / "tiny.inter").write_text(lines(PAIRS))
    titles = "".join(f"{item}\tThing {item}\n" for item in range(8))
    (folder / "tiny.item").write_text("item_id:token\ttitle:token_seq\n" + titles)
    return folder


def prepared(folder: Path, form: str, output: Path, *more: str) -> RecommendationData:
    assert main(["--format", form, "--folder", str(folder), "--output", str(output), *more]) == 0
    return RecommendationData.load(output)


def test_recbole(recbole: Path, tmp_path: Path) -> None:
    data = prepared(recbole, "recbole", tmp_path / "data", "--split", "leave-one-out")
    assert data.users["user_id"].to_pylist() == [f"u{user}" for user in range(5)]
    assert data.items.to_pydict() == {"item_id": list(range(8)), "title": [f"Thing {item}" for item in range(8)]}
    assert data.histories("test").items.tolist() == [4, 5, 6, 7, 0]
    assert [one["file"] for one in data.info["sources"]] == ["tiny.inter", "tiny.item"]


def test_recbole_is_what_its_interactions_are(recbole: Path, tmp_path: Path) -> None:
    by_folder = prepared(recbole, "recbole", tmp_path / "a")
    flags = ["--interactions", str(recbole / "tiny.inter"), "--items", str(recbole / "tiny.item")]
    assert main([*flags, "--output", str(tmp_path / "b")]) == 0
    assert by_folder.interactions.equals(RecommendationData.load(tmp_path / "b").interactions)


def test_a_given_split_is_kept(recbole: Path, tmp_path: Path) -> None:
    (recbole / "tiny.inter").unlink()
    for word, steps in (("train", {0, 1, 2}), ("valid", {3}), ("test", {4})):
        (recbole / f"tiny.{word}.inter").write_text(lines([pair for pair in PAIRS if pair[2] in steps]))
    data = prepared(recbole, "recbole", tmp_path / "data")
    assert data.info["protocol"]["line"].startswith("given split")
    assert data.histories("validation").items.tolist() == [3, 4, 5, 6, 7]
    assert data.items["item_id"].to_pylist() == list(range(8))
    again = prepared(recbole, "recbole", tmp_path / "other", "--split", "random")
    assert again.info["protocol"]["split"] == "random" and again.interactions.num_rows == len(PAIRS)


def test_released_cllm4rec_with_texts_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,))):
        rows = [(user, item) for user, item, step in PAIRS if step in steps]
        matrix = sparse.csr_matrix((np.ones(len(rows)), tuple(zip(*rows, strict=True))), shape=(5, 9))
        sparse.save_npz(tmp_path / f"{name}_matrix.npz", matrix)
    (tmp_path / "titles.csv").write_text("item_id,title\n" + "".join(f"{item},Thing {item}\n" for item in range(9)))
    data = prepared(tmp_path, "cllm4rec", tmp_path / "data", "--items", str(tmp_path / "titles.csv"), "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["statistics"] == data.info["statistics"] and printed["folder"] == str(tmp_path / "data")
    assert data.items.num_rows == 8 and data.items["title"][7].as_py() == "Thing 7"
    assert data.histories("test").items.tolist() == [4, 5, 6, 7, 0]
    plain = prepared(tmp_path, "cllm4rec", tmp_path / "plain", "--keep-all-items")
    assert plain.items["item_id"].to_pylist() == list(range(9))


@pytest.fixture
def lcrec(tmp_path: Path) -> Path:
    folder = tmp_path / "lcrec"
    folder.mkdir()
    histories = {str(user): [item for owner, item, _ in PAIRS if owner == user] for user in range(5)}
    (folder / "Tiny.inter.json").write_text(json.dumps(histories))
    (folder / "Tiny.item.json").write_text(json.dumps({str(item): {"title": f"Thing {item}"} for item in range(8)}))
    index = {str(item): [f"<a_{item // 4}>", f"<b_{item % 4}>"] for item in range(8)}
    (folder / "Tiny.index.json").write_text(json.dumps(index))
    return folder


def test_released_lcrec(lcrec: Path, tmp_path: Path) -> None:
    data = prepared(lcrec, "lcrec", tmp_path / "data")
    assert data.info["protocol"]["split"] == "leave-one-out"
    assert data.histories("train").items.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]
    assert data.histories("test").items.tolist() == [4, 5, 6, 7, 0]
    assert data.items["title"][2].as_py() == "Thing 2"


def test_the_released_index_becomes_an_index_folder(lcrec: Path, tmp_path: Path) -> None:
    prepared(lcrec, "lcrec", tmp_path / "data")
    shared = {"data": str(tmp_path / "data"), "output": str(tmp_path / "index"), "method": "given"}
    codes = str(lcrec / "Tiny.index.json")
    with pytest.raises(ValueError, match="with num_levels 4 it must be a list of"):
        index_items(IndexArguments(**shared, codes=codes))
    index_items(IndexArguments(**shared, codes=codes, num_levels=2, codebook_size=4))
    index, items = SemanticIds.load(tmp_path / "index" / "index.parquet")
    assert index.codes.tolist() == [[item // 4, item % 4] for item in range(8)]
    assert items.array.to_pylist() == list(range(8))
    for wrong in ({**shared}, {**shared, "method": "random", "codes": codes}):
        with pytest.raises(ValueError, match="a file of codes belongs to method 'given'"):
            IndexArguments(**wrong)


@pytest.mark.parametrize(
    ("form", "more", "message"),
    [
        ("recbole", ["--split", "given"], "--split is 'given', but the files of .* have no split"),
        ("recbole", ["--items", "a.csv"], "--items is a.csv, but the folder has .*tiny.item; leave one of them out"),
        ("recbole", ["--no-reviews"], "--no-reviews is given, but says nothing about --format recbole"),
        ("lcrec", [], "there is no NAME.inter.json"),
        ("lcrec", ["--rating-column", "x"], "--rating-column is given, but says nothing about --format lcrec"),
        ("cllm4rec", ["--id-type", "string"], "--id-type is given, but says nothing about --format cllm4rec"),
        ("cllm4rec", [], "train_matrix.npz is missing"),
    ],
)
def test_bad_input_is_one_line(
    recbole: Path, tmp_path: Path, form: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--format", form, "--folder", str(recbole), "--output", str(tmp_path / "data"), *more]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cllm4rec prepare: error: ")]
    assert len(said) == 1 and re.search(message, said[0]), said
    assert not (tmp_path / "data").exists()


def test_items_of_lcrec_are_not_given_twice(lcrec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--format", "lcrec", "--folder", str(lcrec), "--items", "a.csv", "--output", str(tmp_path / "data")]
    assert main(flags) == 2
    assert "--items is a.csv, but the folder has" in capsys.readouterr().err


def test_a_format_is_one_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--interactions", "a.csv", "--format", "lcrec", "--output", str(tmp_path / "data")]) == 2
    assert "--format is 'lcrec', the form of a folder; give the folder" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path), "--output", str(tmp_path / "data")]) == 2
    assert "(empty) cannot be recognized; name it with --format ... (movielens, " in capsys.readouterr().err
