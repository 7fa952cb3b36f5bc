"""Public data sets in the form in which they are downloaded; all contents are invented."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.corpora.formats import FORMATS, PRESETS, format_table, recognize_format
from modeling_cllm4rec.corpora.raw_data import open_raw_data, prepare

Rows = list[dict[str, Any]]


def lines(rows: Rows, write: Callable[[Any], str] = json.dumps) -> bytes:
    return "".join(write(row) + "\n" for row in rows).encode()


def text(*rows: str, encoding: str = "utf-8") -> bytes:
    return ("\n".join(rows) + "\n").encode(encoding)


AMAZON_REVIEW = {
    "reviewerID": "U1",
    "asin": "0001",
    "reviewerName": "N",
    "helpful": [0, 1],
    "reviewText": "Good &amp; <b>cheap</b>",
    "overall": 4.0,
    "summary": "S",
    "unixReviewTime": 1400000000,
    "reviewTime": "05 13, 2014",
}
AMAZON_ITEM = {"item_id": "0001", "title": "Lamp & shade", "brand": "Bright"}

FILES: Mapping[str, tuple[str, dict[str, bytes], dict[str, Any], dict[str, Any]]] = {
    "movielens csv": (
        "movielens",
        {
            "ratings.csv": text("userId,movieId,rating,timestamp", "1,10,4.5,964982703", "1,20,3.0,964981247"),
            "movies.csv": text("movieId,title,genres", '10,"Up, Again (1995)",Comedy|Drama', "20,Down (1996),(no genres listed)"),
        },
        {"user_id": 1, "item_id": 10, "rating": "4.5", "timestamp": "964982703"},
        {"item_id": 10, "title": "Up, Again (1995)", "categories": ["Comedy", "Drama"]},
    ),
    "movielens 1m": (
        "movielens",
        {
            "ratings.dat": text("1::10::5::978300760", "1::20::3::978302109"),
            "movies.dat": text('10::Café: "Noir" (1995)::Drama|War', "20::Down::Comedy", encoding="latin-1"),
            "users.dat": text("1::F::1::10::48067"),
        },
        {"user_id": 1, "item_id": 10, "rating": "5", "timestamp": "978300760"},
        {"item_id": 10, "title": 'Café: "Noir" (1995)', "categories": ["Drama", "War"]},
    ),
    "movielens 100k": (
        "movielens",
        {
            "u.data": text("1\t10\t5\t881250949", "1\t20\t3\t891717742"),
            "u.item": text(
                "10|Cité (1995)|01-Jan-1995||http://x.example/?a|" + "|".join("0001110000000000000"),
                "20|Down (1996)|01-Jan-1996||http://x.example/?b|" + "|".join("1" * 19),
                encoding="latin-1",
            ),
        },
        {"user_id": 1, "item_id": 10, "rating": "5", "timestamp": "881250949"},
        {"item_id": 10, "title": "Cité (1995)", "categories": ["Animation", "Children's", "Comedy"]},
    ),
    "amazon2014": (
        "amazon2014",
        {
            "reviews_Lamps_5.json.gz": gzip.compress(lines([AMAZON_REVIEW])),
            "meta_Lamps.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "asin": "0001",
                            "title": "Lamp &amp; shade",
                            "brand": "Bright",
                            "price": 5.99,
                            "imUrl": "http://x.example",
                            "salesRank": {"Home": 5},
                            "related": {"also_bought": ["0002"]},
                            "categories": [["Home", "Lamps"], ["Light"]],
                            "description": "It's a 'lamp' with \"quotes\".",
                        },
                        {"asin": "0002", "categories": [["Home"]], "price": "from 5"},
                    ],
                    repr,
                )
            ),
        },
        {"user_id": "U1", "item_id": "0001", "rating": 4.0, "timestamp": 1400000000, "review": AMAZON_REVIEW["reviewText"]},
        {
            **AMAZON_ITEM,
            "categories": ["Home", "Lamps", "Light"],
            "description": "It's a 'lamp' with \"quotes\".",
            "price": "5.99",
        },
    ),
    "amazon2018": (
        "amazon2018",
        {
            "Lamps_5.json.gz": gzip.compress(lines([{**AMAZON_REVIEW, "style": {"Color:": "red"}, "vote": "2"}])),
            "meta_Lamps.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "asin": "0001",
                            "title": "Lamp &amp; shade",
                            "brand": "Bright",
                            "category": ["Home", "Lamps"],
                            "description": ["First.", "Second."],
                            "feature": ["Bright"],
                            "price": "$5.99",
                            "rank": ["12 in Home"],
                            "tech1": {"a": "b"},
                            "details": {},
                            "also_buy": ["0002"],
                        },
                        {
                            "asin": "0001",
                            "title": "Lamp &amp; shade",
                            "brand": "Bright",
                            "category": ["Home", "Lamps"],
                            "description": ["First.", "Second."],
                            "feature": ["Bright"],
                            "price": "$5.99",
                            "rank": "another",
                            "tech1": "",
                        },
                        {
                            "asin": "0002",
                            "title": "T",
                            "brand": "",
                            "category": [],
                            "description": [],
                            "feature": [],
                            "rank": "4 in Home",
                        },
                    ]
                )
            ),
        },
        {"user_id": "U1", "item_id": "0001", "rating": 4.0, "timestamp": 1400000000, "review": AMAZON_REVIEW["reviewText"]},
        {**AMAZON_ITEM, "categories": ["Home", "Lamps"], "description": "First. Second. Bright", "price": "$5.99"},
    ),
    "amazon2023": (
        "amazon2023",
        {
            "Lamps.jsonl.gz": gzip.compress(
                lines(
                    [
                        {
                            "rating": 4.0,
                            "title": "S",
                            "text": "Good",
                            "images": [{"small": "x"}],
                            "asin": "0009",
                            "parent_asin": "0001",
                            "user_id": "U1",
                            "timestamp": 1593878903123,
                            "helpful_vote": 0,
                            "verified_purchase": True,
                        }
                    ]
                )
            ),
            "meta_Lamps.jsonl.gz": gzip.compress(
                lines(
                    [
                        {
                            "main_category": "Home",
                            "title": "Lamp & shade",
                            "average_rating": 4.5,
                            "rating_number": 2,
                            "features": ["Bright"],
                            "description": [],
                            "price": 5.99,
                            "images": [{"thumb": "x"}],
                            "videos": [],
                            "store": "Bright",
                            "categories": ["Home", "Lamps"],
                            "details": {"Color": "red"},
                            "parent_asin": "0001",
                            "bought_together": None,
                        },
                        {
                            "title": "T",
                            "features": [],
                            "description": [],
                            "price": "from 5",
                            "store": None,
                            "categories": [],
                            "details": {},
                            "parent_asin": "0002",
                            "images": [],
                            "videos": [{"u": "x"}],
                        },
                    ]
                )
            ),
        },
        {"user_id": "U1", "item_id": "0001", "rating": 4.0, "timestamp": 1593878903123, "review": "Good"},
        {**AMAZON_ITEM, "categories": ["Home", "Lamps"], "description": "Bright", "price": "5.99"},
    ),
    "yelp": (
        "yelp",
        {
            "yelp_academic_dataset_review.json": lines(
                [
                    {
                        "review_id": "r",
                        "user_id": "U-1",
                        "business_id": "B_1",
                        "stars": 3.0,
                        "useful": 0,
                        "funny": 0,
                        "cool": 0,
                        "text": "Fine",
                        "date": "2018-07-07 22:09:11",
                    }
                ]
            ),
            "yelp_academic_dataset_business.json": lines(
                [
                    {
                        "business_id": "B_1",
                        "name": "Thai Place",
                        "address": "1 Road",
                        "city": "Ghent",
                        "state": "X",
                        "stars": 4.5,
                        "attributes": {"WiFi": "no"},
                        "categories": "Thai, Food",
                        "hours": None,
                        "is_open": 1,
                    }
                ]
            ),
        },
        {"user_id": "U-1", "item_id": "B_1", "rating": 3.0, "timestamp": "2018-07-07 22:09:11", "review": "Fine"},
        {"item_id": "B_1", "title": "Thai Place", "categories": ["Thai", "Food"], "city": "Ghent"},
    ),
    "steam": (
        "steam",
        {
            "steam_reviews.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "username": "Ann",
                            "hours": 1.5,
                            "products": 5,
                            "product_id": "700",
                            "date": "2018-01-01",
                            "text": "It's fun",
                            "early_access": False,
                        }
                    ],
                    repr,
                )
            ),
            "steam_games.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "id": "700",
                            "app_name": "Pong II",
                            "title": "Pong II",
                            "genres": ["Action"],
                            "tags": ["Retro", "Action"],
                            "price": 4.99,
                            "developer": "Dev",
                            "specs": ["Single-player"],
                            "early_access": False,
                        },
                        {"id": "800", "app_name": "Free", "price": "Free To Play", "genres": ["Indie"]},
                    ],
                    repr,
                )
            ),
        },
        {"user_id": "Ann", "item_id": "700", "timestamp": "2018-01-01", "review": "It's fun"},
        {"item_id": "700", "title": "Pong II", "brand": "Dev", "categories": ["Action", "Retro", "Action"], "price": "4.99"},
    ),
    "goodreads": (
        "goodreads",
        {
            "goodreads_interactions_poetry.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "user_id": "ab12",
                            "book_id": "1384",
                            "review_id": "r",
                            "is_read": True,
                            "rating": 5,
                            "review_text_incomplete": "",
                            "date_added": "Mon Aug 01 13:41:57 -0700 2011",
                            "date_updated": "",
                            "read_at": "",
                            "started_at": "",
                        }
                    ]
                )
            ),
            "goodreads_books_poetry.json.gz": gzip.compress(
                lines(
                    [
                        {
                            "book_id": "1384",
                            "title": "Verses",
                            "publisher": "Press",
                            "description": "Poems.",
                            "authors": [{"author_id": "1"}],
                            "popular_shelves": [{"count": "1", "name": "to-read"}],
                            "isbn": "",
                            "series": [],
                        }
                    ]
                )
            ),
        },
        {"user_id": "ab12", "item_id": "1384", "rating": 5, "timestamp": "2011-08-01T20:41:57"},
        {"item_id": "1384", "title": "Verses", "brand": "Press", "description": "Poems."},
    ),
    "mind": (
        "mind",
        {
            "behaviors.tsv": text(
                "1\tU1\t11/13/2019 8:36:57 AM\tN3 N4\tN1-1 N2-0", "2\tU2\t11/13/2019 1:00:00 PM\t\tN2-1 N1-0 N3-1"
            ),
            "news.tsv": text(*(f'N{n}\tsports\tgolf\tTitle "{n}\tAbstract {n}\thttp://x.example\t[]\t[]' for n in range(1, 5))),
        },
        {"user_id": "U1", "item_id": "N1", "timestamp": "2019-11-13T08:36:57"},
        {"item_id": "N1", "title": 'Title "1', "categories": ["sports", "golf"], "description": "Abstract 1"},
    ),
    "hm": (
        "hm",
        {
            "transactions_train.csv": text(
                "t_dat,customer_id,article_id,price,sales_channel_id", "2018-09-20,00ab,0108775015,0.05,2"
            ),
            "articles.csv": text(
                "article_id,product_code,prod_name,product_type_name,product_group_name,colour_group_name,section_name,detail_desc",
                '0108775015,0108775,Strap top,Vest top,Garment Upper body,Black,Womens,"Jersey top, narrow straps."',
            ),
        },
        {"user_id": "00ab", "item_id": "0108775015", "timestamp": "2018-09-20"},
        {
            "item_id": "0108775015",
            "title": "Strap top",
            "categories": ["Garment Upper body", "Vest top", "Womens"],
            "description": "Jersey top, narrow straps.",
            "colour_group_name": "Black",
        },
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_presets(tmp_path: Path, case: str) -> None:
    name, files, interaction, item = FILES[case]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    assert recognize_format(tmp_path) == name
    raw = open_raw_data(tmp_path)
    assert raw.items is not None
    row = raw.interactions.read_all().to_pylist()[0]
    row["timestamp"] = row["timestamp"].isoformat() if hasattr(row["timestamp"], "isoformat") else row["timestamp"]
    assert row == interaction
    assert {key: value for key, value in raw.items.to_pylist()[0].items() if value is not None} == item
    assert [Path(path).name for paths in raw.files.values() for path in paths] == [name for name in files if name != "users.dat"]


def test_every_preset_is_tested_and_documented() -> None:
    assert {name for name, *_ in FILES.values()} == set(PRESETS)
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert format_table() in page
    for preset in PRESETS.values():
        assert preset.url.startswith("https://") and preset.terms and len(preset.interactions) == len(preset.items)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--list-formats"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert all(f"`{name}`" in printed for name in FORMATS)


def test_a_preset_from_the_shell(tmp_path: Path) -> None:
    rows = "".join(f"{user}::{item}::5::{978300760 + item}\n" for user in range(1, 4) for item in range(1, 5))
    (tmp_path / "ratings.dat").write_text(rows)
    (tmp_path / "movies.dat").write_text("".join(f"{item}::Film {item}::Drama|War\n" for item in range(1, 5)))
    assert main(["prepare", "--folder", str(tmp_path), "--output", str(tmp_path / "shell")]) == 0
    data = prepare(tmp_path / "python", folder=tmp_path, format="movielens")
    assert data.items["categories"].to_pylist() == [["Drama", "War"]] * 4
    assert (tmp_path / "shell" / "train.parquet").read_bytes() == (tmp_path / "python" / "train.parquet").read_bytes()


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ([], {"format": "hm"}, r"no file of interactions of hm \(transactions_train.csv\); download it from https://www.kaggle"),
        (["A.jsonl", "B.jsonl"], {"format": "amazon2023"}, "several files fit format amazon2023: A.jsonl, B.jsonl; keep one"),
        (
            ["ratings.csv"],
            {"format": "movielens", "delimiter": ";"},
            "delimiter is given, but says nothing about format='movielens'",
        ),
        (["ratings.csv"], {"format": "netflix"}, "format must be one of movielens, .*, got 'netflix'"),
        (["ratings.csv"], {"format": "movielens", "split": "given"}, "split is 'given', but the files of .* have no split"),
        ([], {}, r"the format of the folder \(empty\) cannot be recognized; name it with format=... \(movielens, "),
        (["ratings.csv"], {"format": "movielens", "interactions": "a.csv"}, "give either interactions, or folder and format"),
    ],
)
def test_bad_folders(tmp_path: Path, files: list[str], arguments: dict[str, Any], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("userId,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match=message) if files else pytest.raises(FileNotFoundError, match=message):
        open_raw_data(folder=tmp_path, **arguments)


def test_labels_of_mind(tmp_path: Path) -> None:
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/13/2019 8:36:57 AM\tN3\tN1 N2\n")
    with pytest.raises(
        ValueError, match="impressions must be ITEM-1 or ITEM-0, got 'N1', 'N2'; the test set of MIND has no labels"
    ):
        open_raw_data(folder=tmp_path, format="mind")


def test_times_of_another_form(tmp_path: Path) -> None:
    rows = [{"user_id": "a", "book_id": "b", "rating": 5, "date_added": "2011-08-01"}]
    (tmp_path / "goodreads_interactions.json").write_bytes(lines(rows))
    with pytest.raises(ValueError, match="timestamp in row 1 is '2011-08-01'; the form is '%a %b"):
        open_raw_data(folder=tmp_path, format="goodreads")


def test_no_genres_of_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,964982703\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n10,Up,(no genres listed)\n")
    raw = open_raw_data(tmp_path)
    assert raw.items is not None and raw.items.to_pylist() == [{"item_id": 10, "title": "Up", "categories": None}]


def test_released_files_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "one.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    (tmp_path / "one.item").write_text("item_id:token\tmovie_title:token_seq\n2\tUp\n")
    assert open_raw_data(tmp_path).columns == ("user_id", "item_id")
    (tmp_path / "one.inter.json").write_text('{"1": [2, 3]}')
    with pytest.raises(
        ValueError, match=r"fit several formats: recbole \(one.inter\), lcrec \(one.inter.json\); name one of them"
    ):
        recognize_format(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: there is no such folder"):
        recognize_format(tmp_path / "none")


def test_a_file_of_a_data_set_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t10\t5\t881250949\n")
    with pytest.raises(
        ValueError, match="no column 'user_id'; it has 1, 10, 5.*; or pass folder='.*', .* files of format movielens"
    ):
        open_raw_data(tmp_path / "u.data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column 'user_id'; it has a, b; name it with user_column$"):
        open_raw_data(tmp_path / "other" / "log.csv")


def test_texts_that_lack_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reviews = [AMAZON_REVIEW, AMAZON_REVIEW | {"asin": "0002"}, AMAZON_REVIEW | {"asin": "0003"}]
    (tmp_path / "Things_5.json").write_bytes(lines(reviews))
    (tmp_path / "meta_Things.json").write_bytes(lines([{"asin": "0001", "title": "Lamp"}]))
    with caplog.at_level("INFO"):
        data = prepare(tmp_path / "data", tmp_path)
    assert data.items["title"].to_pylist() == ["Lamp", None, None]
    assert "2 of 3 items with interactions have no texts: '0002', '0003'" in caplog.text
    with pytest.raises(ValueError, match="2 of 3 items with interactions are not among the items"):
        prepare(tmp_path / "strict", tmp_path, on_missing_item="error")
    with pytest.raises(ValueError, match="2 of 3 items with interactions are not among the items"):
        prepare(tmp_path / "own", tmp_path, items=[{"asin": "0001", "title": "Lamp"}])
