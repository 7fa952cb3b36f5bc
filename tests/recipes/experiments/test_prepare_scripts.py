"""The scripts that measure `prepare` and loading: `prepare_scale.py`, `prepare_formats.py`, `load_scale.py`."""

from __future__ import annotations

from pathlib import Path

import load_scale
import prepare_formats
import prepare_scale
import pytest

from modeling_cllm4rec.corpora.data_folder import RecommendationData


def test_prepare_scale_and_load_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, data = tmp_path / "log.parquet", tmp_path / "data"
    prepare_scale.write_log(3000, file)
    prepare_scale.prepare_once(file, data, 2, "1GB")
    assert '"interactions"' in capsys.readouterr().out
    assert prepare_scale.kept_by_prepare(data, "1GB", tmp_path) == prepare_scale.kept_by_sql(file, 2, "1GB", tmp_path)
    found = load_scale.load_once(data)
    histories = RecommendationData.load(data).histories("train")
    assert found["checksum"] == histories.items.sum()


RATINGS = "".join(f"{user}\t{item}\t5\t{880000000 + user * item}\n" for user in range(1, 5) for item in range(1, 4 + user))
FOLDERS = {
    "u.data": RATINGS + "1\t2\t4\t890000000\n",
    "ratings.dat": RATINGS.replace("\t", "::"),
    "ratings.csv": "userId,movieId,rating,timestamp\n" + RATINGS.replace("\t", ","),
    "small.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS,
    "Small.inter.json": '{"7": [3, 1, 3, 2], "8": [1, 2, 3, 4]}',
    "behaviors.tsv": "".join(f"{n}\tU{n % 2}\t11/1{n}/2019 1:00:00 PM\tN9\tN{n}-1 N2-0 N7-1\n" for n in range(1, 6)),
    "transactions_train.csv": "t_dat,customer_id,article_id\n2020-01-01,a,01\n2020-01-02,a,02\n2020-01-03,b,01\n",
    "Small_5.json": "".join(
        f'{{"reviewerID": "U{n % 3}", "asin": "B{n % 5}", "unixReviewTime": {n}, "overall": 5, "reviewText": "x"}}\n'
        for n in range(20)
    ),
    "yelp_academic_dataset_review.json": "".join(
        f'{{"user_id": "u{n % 3}", "business_id": "b{n}", "stars": 5, "date": "2012-01-03 15:28:18", "text": "x"}}\n'
        for n in range(9)
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_prepare_formats(tmp_path: Path, name: str) -> None:
    folder, output = tmp_path / "raw", tmp_path / "data"
    folder.mkdir()
    (folder / name).write_text(FOLDERS[name])
    if name.endswith(".inter.json"):
        (folder / "Small.item.json").write_text('{"1": {"title": "A"}, "2": {}, "3": {}, "4": {}}')
    k_core = 2 if name in ("u.data", "ratings.dat", "ratings.csv", "small.inter") else 0
    prepare_formats.prepare_once(folder, output, k_core)
    rows, *expected = prepare_formats.kept_by_sql(folder, k_core)
    assert list(prepare_formats.kept_by_prepare(output)) == expected and 0 < expected[0] <= rows


def test_every_query_is_tested(tmp_path: Path) -> None:
    found = {query for query in prepare_formats.QUERIES if any(Path(name).match(query) for name in FOLDERS)}
    assert found == set(prepare_formats.QUERIES)
    with pytest.raises(FileNotFoundError, match="none of its files is ratings.csv"):
        prepare_formats.kept_by_sql(tmp_path, 0)
