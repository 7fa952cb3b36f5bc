"""One question over all paths: Python, queries, JSON, Inference Endpoints, the HTTP service, the page, and the shell."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modeling_cllm4rec.app.answers import Question as PageQuestion
from modeling_cllm4rec.app.answers import ShownModel, ShownModels
from modeling_cllm4rec.commands import recommend as recommend_command
from modeling_cllm4rec.core.handler import BadRequest, EndpointHandler, answer, read_question
from modeling_cllm4rec.core.questions import QuestionError

LIST, IDS = "allowed: a list of ids", "allowed: the {} that the model knows"
WHOLE = "allowed: a whole number from 1 to {}, the items to choose from; choose another k"
FLAGS = {"k": "--k", "users": "--users", "candidates": "--candidates", "num_beams": "--num-beams", "queries": "--query"}
NO_HISTORY = "allowed: a history with at least one known item; give it an item"

# model, question, argument that is named, what is said of it, paths next to `recommend` and `iter_recommendations`
BAD = [
    ("cllm4rec", {"users": [7], "k": 0}, "k", WHOLE.format(6), "json shell page"),
    ("cllm4rec", {"users": [7], "k": -1}, "k", WHOLE.format(6), "json shell page"),
    ("cllm4rec", {"users": [7], "k": 7}, "k", WHOLE.format(6), "json shell page"),
    ("cllm4rec", {"users": [7], "k": 2.5}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": 2.0}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": True}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": "2"}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": math.nan}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": math.inf}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": None}, "k", WHOLE.format(6), "json page"),
    ("cllm4rec", {"users": [7], "k": 3, "candidates": ["ä", "5", "ä"]}, "k", WHOLE.format(2), "json shell page"),
    ("cllm4rec", {"users": [7], "candidates": []}, "candidates", "allowed: at least one known item id; leave", "json page"),
    ("cllm4rec", {"users": [7], "candidates": "ä"}, "candidates", LIST, "json page"),
    ("cllm4rec", {"users": [7], "candidates": ["b"]}, "candidates", IDS.format("6 item_ids"), "json shell page"),
    ("cllm4rec", {"users": [7], "candidates": [5]}, "candidates", "allowed: strings; the item_ids of this model", "json page"),
    ("cllm4rec", {"users": [7], "exclude_seen": "no"}, "exclude_seen", "allowed: true or false", "json page"),
    ("cllm4rec", {"users": [7], "exclude_seen": 0}, "exclude_seen", "allowed: true or false", "json page"),
    ("cllm4rec", {}, "users", "allowed: users, histories, or both; name users or histories", "json"),
    ("cllm4rec", {"users": 7}, "users", LIST, "json"),
    ("cllm4rec", {"users": "ann"}, "users", LIST, "json"),
    ("cllm4rec", {"users": {"7": 1}}, "users", LIST, "json"),
    ("cllm4rec", {"users": ["7"]}, "users", "allowed: whole numbers; the user_ids of this model", "json"),
    ("cllm4rec", {"users": [7.0]}, "users", "allowed: whole numbers", "json"),
    ("cllm4rec", {"users": [True]}, "users", "allowed: whole numbers", "json"),
    ("cllm4rec", {"users": [math.nan]}, "users", "allowed: whole numbers", "json"),
    ("cllm4rec", {"users": [None]}, "users", "allowed: whole numbers", "json"),
    ("cllm4rec", {"users": [-1, 7, 9]}, "users", f"{IDS.format('3 user_ids')}; correct the unknown ids, 2 in all", "json shell"),
    ("cllm4rec", {"users": [10**30]}, "users", IDS.format("3 user_ids"), "json shell"),
    ("cllm4rec", {"users": [7], "histories": [["ä"], ["ä"]]}, "histories", "allowed: a list of 1, one for each of the", "json"),
    ("cllm4rec", {"histories": "ä"}, "histories", LIST, "json"),
    ("cllm4rec", {"histories": ["ä"]}, "histories[0]", LIST, "json shell"),
    ("cllm4rec", {"histories": [["ä"], 7]}, "histories[1]", LIST, "json"),
    ("cllm4rec", {"histories": [["ä"], None]}, "histories[1]", LIST, "json shell"),
    ("cllm4rec", {"histories": [["ä"], []]}, "histories[1]", NO_HISTORY, "json shell"),
    ("cllm4rec", {"histories": [["ä"], ["b", "ä"]]}, "histories[1]", IDS.format("6 item_ids"), "json shell"),
    ("cllm4rec", {"histories": [[5]]}, "histories[0]", "allowed: strings", "json shell"),
    ("cllm4rec", {"histories": [[math.nan]]}, "histories[0]", "allowed: strings", "json"),
    ("lcrec", {"users": ["ann"], "k": 6}, "k", "allowed: 1 to 5, the number of beams of the search; give", "json page"),
    ("lcrec", {"users": ["ann"], "num_beams": 0}, "num_beams", "allowed: a whole number of 1 or more", "json shell page"),
    ("lcrec", {"users": ["ann"], "num_beams": 2.5}, "num_beams", "allowed: a whole number of 1 or more", "json page"),
    ("lcrec", {"users": ["ann"], "num_beams": True}, "num_beams", "allowed: a whole number of 1 or more", "json page"),
    ("lcrec", {"users": ["ann"], "histories": [[]]}, "histories[0]", NO_HISTORY, "json"),
    ("lcrec", {"users": ["eve"]}, "users", IDS.format("3 user_ids"), "json shell"),
    ("lcrec", {"queries": ["soap"], "k": 0}, "k", "allowed: a whole number from 1 to 12", "json shell page"),
    ("lcrec", {"queries": ["soap"], "k": 2.5}, "k", "allowed: a whole number from 1 to 12", "json page"),
    ("lcrec", {"queries": ["soap"], "exclude_seen": "no"}, "exclude_seen", "allowed: true or false", "json page"),
    ("lcrec", {"queries": ["soap"], "candidates": ["b"]}, "candidates", IDS.format("12 item_ids"), "json shell page"),
    ("lcrec", {"queries": [" "]}, "queries[0]", "allowed: a text with words; say in words", "json shell"),
    ("lcrec", {"queries": ["?!"]}, "queries[0]", "allowed: a text with words; say in words", "json shell page"),
    ("lcrec", {"queries": [5]}, "queries[0]", "allowed: a text with words; say in words", "json"),
    ("lcrec", {"queries": ["soap"], "histories": [["ä"], ["ä"]]}, "histories", "allowed: a list of 1, one for each of", "json"),
    ("lcrec", {"queries": ["soap"], "histories": [[]]}, "histories[0]", NO_HISTORY, "json"),
    ("lcrec", {"queries": "soap"}, "queries", "allowed: a list of texts", ""),
    ("cllm4rec", {"queries": ["soap"]}, "queries", "allowed: users or histories; this model reads no queries", "shell"),
    ("cllm4rec", {"users": [7], "on_unknown": "ignore"}, "on_unknown", "allowed: 'raise' and 'skip'", ""),
    ("cllm4rec", {"users": [7], "num_beams": 5}, "num_beams", "allowed: no settings, because this model scores all", ""),
]  # fmt: skip


def in_python(model, question):
    """Return the calls in Python that take these arguments."""
    if "queries" not in question:
        return [model.recommend, model.iter_recommendations]
    return [model.search] if model.reads_queries else [model.read_question]


def as_request(question):
    request = {name: value for name, value in question.items() if name != "queries"}
    return request | ({"query": question["queries"][0]} if "queries" in question else {})


def shell_words(question, folder):
    """Return the flags of `cllm4rec recommend` that ask a question."""
    flags = []
    for name, value in question.items():
        if name == "histories":
            path = folder / "histories.jsonl"
            path.write_text("".join(json.dumps({"history": history}) + "\n" for history in value))
            value = path
        flag = {"queries": "--query"}.get(name, "--" + name.replace("_", "-"))
        flags += [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
    return flags


def on_page(question, model):
    """Return a question as the page asks it: one user, with the stored history."""
    history = () if "queries" in question else tuple(model.catalogue.ids.ids_of(model.users.history(0)))
    settings = {name: question[name] for name in ("k", "exclude_seen", "num_beams") if name in question}
    candidates = question.get("candidates")
    return PageQuestion(
        history,
        candidates=tuple(candidates) if isinstance(candidates, list) else candidates,
        query=question.get("queries", [""])[0],
        **settings,
    )


@pytest.mark.parametrize(("system", "question", "argument", "words", "paths"), BAD)
def test_a_bad_question_is_refused_alike_on_all_paths(system, question, argument, words, paths, request, tmp_path, capsys):
    model = request.getfixturevalue(system)
    question = {"k": 1, **question}
    for ask in in_python(model, question):  # `iter_recommendations` refuses before the first batch is asked for
        with pytest.raises(QuestionError, match=re.escape(words)) as raised:
            ask(**question)
        assert raised.value.argument == argument and str(raised.value).startswith(f"{argument} is ")
    if "json" in paths:
        endpoint = EndpointHandler.__new__(EndpointHandler)
        endpoint.model = model
        asked = as_request(question)
        for refuse in (lambda: read_question(model, asked), lambda: endpoint({"inputs": asked})):
            with pytest.raises(BadRequest, match=re.escape(words)) as refused:
                refuse()
            assert refused.value.field == ("query" if argument == "queries[0]" else argument)
            json.dumps(refused.value.as_json(), allow_nan=False)
    if "page" in paths:
        models = ShownModels([ShownModel("one", model)])
        expected = re.escape(words.partition(";")[0])
        with pytest.raises(ValueError, match=expected):
            models.check(on_page(question, model))
        assert re.search(expected, models.answer(models.shown[0], on_page(question, model)).message)
    if "shell" in paths:
        folder = request.getfixturevalue(f"{system}_folder")
        assert recommend_command.main(["--model", str(folder), *shell_words(question, tmp_path)]) == 2
        printed = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in printed and f"error: {FLAGS.get(argument, argument)} is " in printed


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_the_service_refuses_alike(system, request, start):
    model = request.getfixturevalue(system)
    with start(model) as server:
        for of, question, argument, words, paths in BAD:
            if of != system or "json" not in paths:
                continue
            body = json.dumps({"k": 1, **as_request(question)})
            if "NaN" in body or "Infinity" in body:  # no JSON; an infinity can be written as a large number
                body = body.replace("Infinity", "1e400")
            status, reply = server.ask("POST", "/recommend", body.encode())
            assert status == 400
            if "NaN" in body or "1e400" in body:
                assert reply["error"]["field"] == "body"
                continue
            assert reply["error"]["field"] == ("query" if argument == "queries[0]" else argument)
            assert f"allowed: {reply['error']['allowed']}; {reply['error']['what_to_do']}".startswith(words)


GOOD = [
    ("cllm4rec", {"users": [7, 1, 3], "k": 2}),
    ("cllm4rec", {"users": [7, 1, 7], "k": 1}),  # named twice, answered twice
    ("cllm4rec", {"users": [3], "k": 6}),  # a known user without a history
    ("cllm4rec", {"histories": [["ä"], ["6", "5", "6"]], "k": 3}),
    ("cllm4rec", {"users": [7], "k": 2, "exclude_seen": False, "candidates": ["ä", "5", "ä", "B00 1"]}),
    ("lcrec", {"users": ["ann", "🎸"], "k": 2}),
    ("lcrec", {"histories": [["ä", "item 3"]], "k": 6, "num_beams": 7}),
    ("lcrec", {"queries": ["a gentle cleanser"], "k": 3}),
    ("lcrec", {"queries": ["soap"], "k": 1, "candidates": ["ä", "item 7"]}),
]  # fmt: skip


@pytest.mark.parametrize(("system", "question"), GOOD)
def test_a_good_question_gets_equal_answers_on_all_paths(system, question, request, start, tmp_path):
    model, folder = request.getfixturevalue(system), request.getfixturevalue(f"{system}_folder")
    ask = model.search if "queries" in question else model.recommend
    rows = ask(**question).to_pylist()
    expected = [row["item"] for row in rows]
    assert [row["item"] for table in model.iter_answers(model.read_question(**question)) for row in table.to_pylist()] == expected
    (reply,) = answer(model, [read_question(model, as_request(question))], 2)
    assert [row["item"] for user in reply["results"] for row in user["items"]] == expected
    with start(model) as server:
        assert [user["items"] for user in server.recommend(as_request(question))[1]["results"]] == [
            [{**row, "score": pytest.approx(row["score"], abs=1e-5)} for row in user["items"]] for user in reply["results"]
        ]
    shell = {name: value for name, value in question.items() if name != "exclude_seen"}
    seen = ["--include-seen"] if not question.get("exclude_seen", True) else []
    output = tmp_path / "out.parquet"
    words = [*shell_words(shell, tmp_path), *seen, "--output", str(output)]
    assert recommend_command.main(["--model", str(folder), *words]) == 0
    table = pa.parquet.read_table(output)
    assert table["item"].to_pylist() == expected and table["user"].to_pylist() == [row["user"] for row in rows]
    models = ShownModels([ShownModel("one", model)])
    asked = on_page(question, model)
    user = question.get("users", [None])[0]
    if "histories" in question:
        asked = PageQuestion(tuple(question["histories"][0]), k=question["k"], num_beams=question.get("num_beams"))
    elif user is not None:
        index = model.users.ids.indices_of([user])[0]
        history = tuple(model.catalogue.ids.ids_of(model.users.history(index)))
        settings = {"candidates": asked.candidates, "exclude_seen": asked.exclude_seen, "k": asked.k}
        asked = PageQuestion(history, user=str(user), **settings)
    models.check(asked)
    shown = models.answer(models.shown[0], asked).rows
    assert [row.item for row in shown] == expected[: len(shown)] and len(shown) == sum(
        row["user"] == rows[0]["user"] for row in rows
    ) / (question.get("users", []).count(user) or 1)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pa.array])
def test_any_ordered_container_holds_ids(cllm4rec, kind):
    expected = cllm4rec.recommend(users=[1, 7], histories=[["ä"], ["5"]], candidates=["6", "🎸"], k=1).table
    given = {"users": kind([1, 7]), "histories": [kind(["ä"]), kind(["5"])], "candidates": kind(["6", "🎸"]), "k": np.int64(1)}
    assert cllm4rec.recommend(**given, exclude_seen=np.True_).table.equals(expected)


# Of every list the unknown is left out; `rows` are the numbers of the users that are answered.
SKIPPED = [
    ("cllm4rec", {"users": [9, 7, 8, 1]}, {"users": [7, 1]}),
    ("cllm4rec", {"histories": [["b"], ["ä", "b"], ["5"]]}, {"histories": [["ä"], ["5"]]}),
    ("cllm4rec", {"users": [7], "candidates": ["b", "ä"]}, {"users": [7], "candidates": ["ä"]}),
    ("lcrec", {"users": ["eve", "ann"]}, {"users": ["ann"]}),
    ("lcrec", {"histories": [["b"], ["ä"]]}, {"histories": [["ä"]]}),
]  # fmt: skip


@pytest.mark.parametrize(("system", "question", "known"), SKIPPED)
def test_skip_leaves_the_unknown_out_in_python_and_in_the_shell(system, question, known, request, tmp_path):
    model, folder = request.getfixturevalue(system), request.getfixturevalue(f"{system}_folder")
    found = model.recommend(**question, k=1, on_unknown="skip").table
    assert found["item"].to_pylist() == model.recommend(**known, k=1).table["item"].to_pylist()
    for batch_size in (1, 5):
        output = tmp_path / f"{batch_size}.parquet"
        words = shell_words({**question, "k": 1, "on_unknown": "skip", "batch_size": batch_size}, tmp_path)
        assert recommend_command.main(["--model", str(folder), *words, "--output", str(output)]) == 0
        assert pa.parquet.read_table(output).drop(["score"]).equals(found.drop(["score"]))


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_skip_that_leaves_nothing(system, request, tmp_path, capsys):
    model, folder = request.getfixturevalue(system), request.getfixturevalue(f"{system}_folder")
    assert len(model.recommend(histories=[["b"], []], k=1, on_unknown="skip")) == 0
    with pytest.raises(QuestionError, match="candidates is .*; allowed: at least one known item id"):
        model.recommend(histories=[["ä"]], candidates=["b"], k=1, on_unknown="skip")
    words = shell_words({"histories": [["b"]], "k": 1, "on_unknown": "skip"}, tmp_path)
    assert recommend_command.main(["--model", str(folder), *words]) == 2
    assert "--on-unknown skip leaves no user" in capsys.readouterr().err


def test_a_user_who_has_seen_all_is_named_and_is_no_unknown_one(cllm4rec, cllm4rec_folder, tmp_path, capsys):
    question = {"users": [1, 7], "candidates": ["🎸"], "k": 1}  # user 1 has seen the guitar
    with pytest.warns(UserWarning, match=r"no item is left to recommend to 1 of the users, who have seen all 1 to .*: \[1\]"):
        assert cllm4rec.recommend(**question).table["user"].to_pylist() == [7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(cllm4rec.recommend(**question, exclude_seen=False)) == 2
    with pytest.warns(UserWarning, match="no item is left"):
        words = shell_words({**question, "users": [1]}, tmp_path)
        assert recommend_command.main(["--model", str(cllm4rec_folder), *words]) == 0
    assert capsys.readouterr().out == ""
