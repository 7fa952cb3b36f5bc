"""What a question may hold, and that an answer is what `recommend` says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_cllm4rec.core.handler import BadRequest, EndpointHandler, answer, read_question


def asked(model, *questions, batch_size=256):
    return answer(model, [read_question(model, question) for question in questions], batch_size)


def expected(model, k=3, **arguments):
    """Return the items of each user from `recommend`."""
    table = model.recommend(k=k, **arguments)
    users = arguments.get("users") or range(len(arguments["histories"]))
    return [table.items(user) for user in users]


def items(reply):
    return [[row["item"] for row in result["items"]] for result in reply["results"]]


def test_users_histories_and_both_are_answered_as_by_recommend(cllm4rec):
    for who in ({"users": [1, 7, 3]}, {"histories": [["ä"], ["6", "5"]]}, {"users": [3, 7], "histories": [[], ["ä", "5"]]}):
        (reply,) = asked(cllm4rec, {**who, "k": 3})
        assert items(reply) == expected(cllm4rec, **who)
        assert [result["user"] for result in reply["results"]] == list(who.get("users", range(2)))


def test_titles_and_scores_come_with_the_items(cllm4rec):
    (reply,) = asked(cllm4rec, {"users": [7], "k": 2, "exclude_seen": False})
    rows = cllm4rec.recommend(users=[7], k=2, exclude_seen=False).to_pylist()
    for found, row in zip(reply["results"][0]["items"], rows, strict=True):
        index = cllm4rec.catalogue.ids.indices_of([row["item"]])
        assert found["title"] == cllm4rec.catalogue.titles(index)[0]
        assert found["score"] == pytest.approx(row["score"], abs=1e-5)


INPUTS = st.one_of(
    st.fixed_dictionaries({"users": st.lists(st.sampled_from([7, 1, 3]), min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"histories": st.lists(st.lists(st.sampled_from(["B00 1", "ä", "6"]), min_size=1, max_size=4), min_size=1, max_size=3)}
    ),
)
SETTINGS = st.fixed_dictionaries(
    {"k": st.integers(1, 4), "exclude_seen": st.booleans()},
    optional={"candidates": st.sampled_from([["ä", "B00 1", "6", "5"], ["🎸", "<item_0>", "ä", "6"]])},
)


@settings(max_examples=25)
@given(st.lists(st.builds(lambda who, how: {**who, **how}, INPUTS, SETTINGS), min_size=1, max_size=5), st.integers(1, 4))
def test_together_or_alone_the_answers_are_the_same(cllm4rec, questions, batch_size):
    together = asked(cllm4rec, *questions, batch_size=batch_size)
    for question, reply in zip(questions, together, strict=True):
        assert items(reply) == items(asked(cllm4rec, question)[0])


def test_lcrec_recommends_and_searches_together_as_alone(lcrec):
    questions = [
        {"users": ["ann"], "k": 3},
        {"histories": [["ä", "item 3"]], "k": 2, "num_beams": 7},
        {"histories": [["ä", "item 3"]], "k": 2, "num_beams": [3, 6]},
        {"query": "a gentle cleanser", "k": 3},
        {"query": "soap", "k": 2},
        {"query": "soap", "histories": [["ä"]], "k": 5},
        {"query": "soap", "users": ["ann"], "k": 2, "candidates": ["ä", "item 7", "item 8"]},
    ]
    replies = asked(lcrec, *questions)
    assert items(replies[0]) == expected(lcrec, users=["ann"])
    assert items(replies[1]) == expected(lcrec, k=2, histories=[["ä", "item 3"]], num_beams=7)
    assert items(replies[2]) == expected(lcrec, k=2, histories=[["ä", "item 3"]], num_beams=[3, 6])
    searched = [
        lcrec.search(["a gentle cleanser"], 3),
        lcrec.search(["soap"], 2),
        lcrec.search(["soap"], 5, [["ä"]]),
        lcrec.search(["soap"], 2, [["item 0", "item 3", "item 5"]], ["ä", "item 7", "item 8"]),
    ]
    for reply, recommendations in zip(replies[3:], searched, strict=True):
        assert items(reply) == [recommendations.items(0)]


@pytest.mark.parametrize("system", ["cllm4rec", "lcrec"])
def test_who_has_seen_all_candidates_gets_none(system, request):
    model = request.getfixturevalue(system)
    seen = model.catalogue.ids.ids_of([3])
    (reply,) = asked(model, {"histories": [seen, model.catalogue.ids.ids_of([2])], "candidates": seen, "k": 1})
    assert items(reply) == [[], seen]


BAD = [
    ([], "body: got .*; allowed: a JSON object; send"),
    ({}, "users: got null; allowed: users, histories, or both; name users or histories"),
    ({"usrs": [7]}, "body: got \"usrs\"; allowed: users, histories.*did you mean 'users'"),
    ({"xyz": 1}, "leave it out"),
    ({"users": [7], "query": "soap"}, "reads no queries.*ask an LC-Rec model"),
    ({"users": "7"}, 'users: got "7"; allowed: a list of ids'),
    ({"users": []}, "users: got .*a list of 1 to 256"),
    ({"users": [7] * 257}, "users: got .*a list of 1 to 256; split"),
    ({"users": ["7"]}, "users: got .*; allowed: whole numbers"),
    ({"users": [True]}, "users: got .*; allowed: whole numbers"),
    ({"users": [8, 7, 9, 8]}, r"users: got \[8, 9\]; allowed: the 3 user_ids.* 2 in all, or leave them out"),
    ({"users": [10**30]}, "users: got .*; allowed: the 3 user_ids"),
    ({"users": [7], "histories": [["ä"], ["ä"]]}, "histories: got .*a list of 1, one for each of the users"),
    ({"histories": [7]}, r"histories\[0\]: got 7; allowed: a list of ids"),
    ({"histories": [["ä"], []]}, r"histories\[1\]: got .*at least one known item"),
    ({"histories": [["b"]]}, r"histories\[0\]: got \[\"b\"\]; allowed: the 6 item_ids"),
    ({"users": [7], "k": 0}, "k: got 0; allowed: a whole number from 1 to 6"),
    ({"users": [7], "k": 2.0}, "k: got 2.0"),
    ({"users": [7], "k": True}, "k: got true"),
    ({"users": [7], "k": 3, "candidates": ["ä", "6", "ä"]}, "k: got 3; .*1 to 2"),
    ({"users": [7], "candidates": []}, "candidates: got .*leave candidates out"),
    ({"users": [7], "candidates": ["b"]}, "candidates: got .*the 6 item_ids"),
    ({"users": [7], "k": 1, "exclude_seen": "no"}, 'exclude_seen: got "no"; allowed: true or false'),
]


@pytest.mark.parametrize(("question", "words"), BAD)
def test_a_bad_question_gets_the_reason(cllm4rec, question, words):
    with pytest.raises(BadRequest, match=words):
        read_question(cllm4rec, {"k": 3, **question} if isinstance(question, dict) else question)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"query": " "}, "query: got .*a text with words"),
        ({"query": 5}, "query: got 5"),
        ({"query": None}, "query: got null"),
        ({"query": "soap", "users": ["ann", "user 1"]}, "users: got .*a list of 1, one for each of the queries"),
        ({"users": ["ann"], "num_beams": 0}, "num_beams: got 0; allowed: a whole number of 1 or more"),
        ({"users": ["ann"], "num_beams": 10**6}, "num_beams: got 1000000"),
        ({"users": ["ann"], "k": 6}, "k: got 6; allowed: 1 to 5, the number of beams of the search; give num_beams=6"),
        ({"users": ["ann"], "histories": [[]]}, r"histories\[0\]: got .*at least one known item"),
    ],
)
def test_a_bad_question_to_lcrec(lcrec, question, words):
    with pytest.raises(BadRequest, match=words):
        read_question(lcrec, {"k": 3, **question})


def test_a_query_longer_than_the_context(lcrec):
    question = read_question(lcrec, {"query": "soap " * 300, "k": 3})
    with pytest.raises(BadRequest, match="query: .*words that fit into the model's context; the prompt takes"):
        answer(lcrec, [question], 64)


def test_what_was_got_is_shown_in_short():
    error = BadRequest("users", ["x" * 1000], "y", "z")
    assert len(error.got) == 203 and error.got.endswith("...") and len(str(error)) < 300
    assert BadRequest("users", ["x"], "y", "z").got == ["x"]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value, got in ((float("inf"), "inf"), ([float("nan")], "[nan]"), (deep, "a deeply nested value")):
        assert BadRequest("k", value, "y", "z").got == got


def test_a_model_without_users_or_without_their_histories(cllm4rec):
    known = cllm4rec.users
    try:
        cllm4rec.users = known.without_histories()
        with pytest.raises(BadRequest, match="keeps no histories; also give histories"):
            read_question(cllm4rec, {"users": [7], "k": 3})
        assert items(asked(cllm4rec, {"users": [7], "histories": [["ä"]], "k": 3})[0])
        cllm4rec.users = None
        with pytest.raises(BadRequest, match="knows no users; give histories"):
            read_question(cllm4rec, {"users": [7], "k": 3})
    finally:
        cllm4rec.users = known


def test_a_model_that_cannot_answer(cllm4rec, monkeypatch):
    monkeypatch.setattr(cllm4rec, "catalogue", None)
    with pytest.raises(ValueError, match="has no catalogue.parquet"):
        cllm4rec.check_ready()
    monkeypatch.setattr(cllm4rec.config, "recommendation_prompts", None)
    with pytest.raises(ValueError, match="has no recommendation prompt"):
        cllm4rec.check_ready()


def test_the_handler_of_inference_endpoints(cllm4rec, monkeypatch):
    handler = EndpointHandler.__new__(EndpointHandler)
    handler.model = cllm4rec
    assert items(handler({"inputs": {"users": [7], "k": 3}})) == expected(cllm4rec, users=[7])
    for data in ({}, [], {"inputs": {"users": [7]}, "parameters": {"k": 3}}):
        with pytest.raises(BadRequest, match="put the whole request under inputs"):
            handler(data)


def test_batch_sizes_suit_the_system(cllm4rec, lcrec):
    assert (cllm4rec.default_batch_size, lcrec.default_batch_size) == (256, 64)
