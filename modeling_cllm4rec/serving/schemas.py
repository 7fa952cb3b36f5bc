"""Schemas of requests and answers, from which FastAPI makes checks, OpenAPI and the page `/docs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    field_validator,
)

from modeling_cllm4rec.core.handler import MOST_BEAMS, MOST_ITEMS, MOST_USERS
from modeling_cllm4rec.serving.settings import MOST_QUERY_CHARACTERS, MOST_WORDS

MOST_FOUND, DEFAULT_FOUND = 100, 20


def _limited(
    most: int, allowed: str, size: Callable[[Any], Any] = lambda value: value, least: float = float("-inf")
) -> AfterValidator:
    """Return a check of a number, or of the size of a list or text. What else is wrong is for the question."""

    def check(value: Any) -> Any:
        measured = size(value)
        if isinstance(measured, int) and not isinstance(measured, bool) and not least <= measured <= most:
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list | str) else None


def _largest(value: Any) -> Any:
    whole = [one for one in value if isinstance(one, int)] if isinstance(value, list) else []
    return max(whole) if whole else value


Id = Annotated[StrictStr | StrictInt, Field(description="external id, in the type of the data: a string or a whole number")]
# What a question holds has any type here: the check of the question refuses wrong values, in the same words on all paths. So the
# types are only documented, and limited where a value would take memory before that check.
_ID = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
_IDS = {"type": "array", "items": _ID}
_ASKED = {**_IDS, "minItems": 1, "maxItems": MOST_USERS}
_LISTS = {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_USERS}
_FEW = _limited(MOST_USERS, f"a list of 1 to {MOST_USERS}", _length, least=1)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole_number(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most}


Count = Annotated[Any, WithJsonSchema(_whole_number(MOST_ITEMS)), _limited(MOST_ITEMS, f"a whole number from 1 to {MOST_ITEMS}")]
Candidates = Annotated[
    Any,
    WithJsonSchema({**_or_null(_IDS), "description": "item ids to choose from; the whole catalogue without them"}),
]


class RequestSchema(BaseModel):
    """A request body, which has no further fields."""

    model_config = ConfigDict(extra="forbid")


class RecommendRequest(RequestSchema):
    """Users, histories, or both; LC-Rec also reads a query in words."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"users": ["ann"], "k": 3},
                {"histories": [["B1", "B2"], ["B3"]], "k": 2, "candidates": ["B4", "B5", "B6"]},
            ]
        },
    )

    users: Annotated[
        Any,
        WithJsonSchema({**_or_null(_ASKED), "description": "external user ids, whose stored histories are read"}),
        _FEW,
    ] = None
    histories: Annotated[
        Any,
        WithJsonSchema(
            {
                **_or_null(_LISTS),
                "description": "lists of item ids, oldest first; together with users, in place of the stored ones",
            }
        ),
        _FEW,
    ] = None
    k: Annotated[Count, Field(description="items for each user")] = 10
    exclude_seen: Annotated[Any, WithJsonSchema({"type": "boolean"}), Field(description="leave items of the history out")] = True
    candidates: Candidates = None
    query: Annotated[
        Any,
        WithJsonSchema(
            {
                **_or_null({"type": "string", "maxLength": MOST_QUERY_CHARACTERS}),
                "description": "LC-Rec: words, alone or with one user or history",
            }
        ),
        _limited(MOST_QUERY_CHARACTERS, f"a text of at most {MOST_QUERY_CHARACTERS:,} characters", _length),
    ] = None
    num_beams: Annotated[
        Any,
        WithJsonSchema({"anyOf": [_whole_number(MOST_BEAMS), {"type": "array", "items": _whole_number(MOST_BEAMS)}]}),
        _limited(MOST_BEAMS, f"a whole number from 1 to {MOST_BEAMS}", _largest),
        Field(description="LC-Rec: beams of the search, or those of each level of a semantic ID"),
    ] = None


class SimilarItemsRequest(RequestSchema):
    """Items, for each of which the most similar ones are listed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"items": ["B1"], "k": 3}]})

    items: Annotated[Any, WithJsonSchema({**_ASKED, "description": "external item ids"}), _FEW]
    k: Annotated[Count, Field(description="similar items for each")] = 10
    candidates: Candidates = None


class TitleSearch(RequestSchema):
    """A search for items by words of their titles."""

    title: Annotated[str, Field(description="words that the title has, in any order", examples=["cream"])]
    limit: Annotated[int, Field(ge=1, le=MOST_FOUND, description="items in the answer")] = DEFAULT_FOUND

    @field_validator("title")
    @classmethod
    def _some_words(cls, title: str) -> str:
        if not 1 <= len(title.split()) <= MOST_WORDS:
            raise ValueError(f"1 to {MOST_WORDS} words of a title")
        return title


class ReloadRequest(RequestSchema):
    """A model to serve from now on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [{"model": "runs/next"}]})

    model: Annotated[
        StrictStr | None,
        Field(min_length=1, max_length=4096, description="folder or Hub name; without it, that of the command line"),
    ] = None


class FoundItem(BaseModel):
    """An item of the catalogue."""

    item: Id
    title: str | None


class ScoredItem(FoundItem):
    """An item with the model's score."""

    score: float


class UserResult(BaseModel):
    """The answer for one user or history."""

    user: Annotated[Id, Field(description="external user id, or the number of the history or query")]
    items: Annotated[list[ScoredItem], Field(description="best first; fewer than k where fewer are left")]


class RecommendAnswer(BaseModel):
    """One result for each user, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"results": [{"user": "ann", "items": [{"item": "B4", "title": "Soft Cream", "score": 4.5}]}]}]
        }
    )

    results: list[UserResult]


class ItemResult(BaseModel):
    """The items that are similar to one item."""

    target_item: Id
    items: Annotated[list[ScoredItem], Field(description="best first; the score is the cosine of the model's vectors")]


class SimilarItemsAnswer(BaseModel):
    """One result for each item, in the order of the request."""

    results: list[ItemResult]


class TitleSearchAnswer(BaseModel):
    """Items whose titles have all words."""

    items: list[FoundItem]
    found: Annotated[int, Field(description="matches in all")]


class ModelInfo(BaseModel):
    """The model that is served."""

    model_config = ConfigDict(protected_namespaces=())

    name: Annotated[str, Field(description="folder or Hub name, as it was given")]
    folder: Annotated[str | None, Field(description="the folder with links followed; null for a model of the Hub")]
    revision: Annotated[str, Field(description="SHA-256 of the folder's files, or the commit on the Hub")]
    model_type: str
    items: int
    users: int
    loaded_at: Annotated[str, Field(description="UTC, ISO 8601")]
    load_seconds: float


class Health(BaseModel):
    """State of the server."""

    status: str
    version: str
    model: ModelInfo
    calls: Annotated[int, Field(description="calls answered since the start")]
    batches: Annotated[int, Field(description="batches in which they were answered")]
    users_waiting: int


class Readiness(BaseModel):
    """Whether the server takes requests."""

    ready: bool


class ReloadAnswer(BaseModel):
    """The new model and the one that it replaced."""

    model: ModelInfo
    previous: ModelInfo


class ErrorReason(BaseModel):
    """The error of a request."""

    field: Annotated[str, Field(description="the wrong field")]
    got: Annotated[Any, Field(description="its value, shortened where it is long")]
    allowed: str
    what_to_do: str


class ErrorAnswer(BaseModel):
    """The answer to a request that cannot be answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"error": {"field": "k", "got": 0, "allowed": "a whole number from 1 to 6", "what_to_do": "choose another k"}}
            ]
        }
    )

    error: ErrorReason
