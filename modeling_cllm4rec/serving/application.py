"""The HTTP service around a model: an application of FastAPI with its routes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, FastAPI, Query, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import Response

from modeling_cllm4rec import __version__
from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.handler import SEARCH_FIELDS, BadRequest, read_question
from modeling_cllm4rec.core.questions import ItemQuestion, QuestionError
from modeling_cllm4rec.serving import schemas
from modeling_cllm4rec.serving.dynamic_batching import QueueFull
from modeling_cllm4rec.serving.error_responses import HTTPException, JSONAnswer, Refused, as_bad_request, refusal
from modeling_cllm4rec.serving.guard import Guard
from modeling_cllm4rec.serving.json_bodies import StrictRoute, client_gone
from modeling_cllm4rec.serving.metrics import CONTENT_TYPE, Metrics
from modeling_cllm4rec.serving.served_models import Load, ServedModels
from modeling_cllm4rec.serving.settings import ServiceSettings

DESCRIPTION = (
    "Recommendations of a CLLM4Rec or LC-Rec model. Ids are those of the data. Every error has the form of `ErrorAnswer`."
)
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": schemas.ErrorAnswer, "description": "Why the request was refused, and what to do."}
}
REQUESTS: dict[str, type[schemas.RequestSchema]] = {
    "/recommend": schemas.RecommendRequest,
    "/similar-items": schemas.SimilarItemsRequest,
    "/items": schemas.TitleSearch,
    "/reload": schemas.ReloadRequest,
}
"""Path of a route -> the schema of its request."""
ROUTES = (
    "POST /recommend, POST /similar-items, GET /items?title=WORDS, GET /health, GET /ready, GET /metrics, POST /reload, GET /docs"
)
questions, probes = APIRouter(route_class=StrictRoute), APIRouter()


def make_service(
    model: Any, settings: ServiceSettings | None = None, load: Load | None = None, load_seconds: float = 0.0
) -> FastAPI:
    """Build the application around a model.

    Args:
        model: a recommender of either system (`hub.loading.load_recommender`).
        settings: settings; None takes the defaults.
        load: function of a folder or Hub name that returns a model, for `POST /reload`; None allows no reload.
        load_seconds: seconds that loading the model took, for `/health`.

    Returns:
        An ASGI application. `app.state.models` is its `ServedModels`, `app.state.metrics` its `Metrics`.

    Raises:
        InputError: the model cannot recommend or has no catalogue.

    Example:
        >>> app = make_service(load_recommender("runs/mine"), load=load_recommender)  # doctest: +SKIP
    """
    settings, metrics = settings or ServiceSettings(), Metrics()
    models = ServedModels(model, settings, metrics, load, load_seconds)
    app = FastAPI(
        title="cllm4rec",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redoc_url=None,
        responses=ERRORS,
        exception_handlers={
            Refused: _refused,
            BadRequest: _bad_request,
            QuestionError: _bad_question,
            CLLM4RecError: _error_of_ours,
            RequestValidationError: _invalid,
            QueueFull: _busy,
            HTTPException: _no_such_route,
        },
    )
    app.state.settings, app.state.metrics, app.state.models = settings, metrics, models
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    # The key is checked by Guard, before a body is read; here it is documented.
    key = HTTPBearer(auto_error=False, description="the server's API key, if it has one")
    app.include_router(questions, dependencies=[Security(key)])
    app.include_router(probes)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    models: ServedModels = app.state.models
    models.current.batcher.start()
    yield
    await models.close()


def _models(request: Request) -> ServedModels:
    models: ServedModels = request.app.state.models
    return models


@questions.post("/recommend", response_model=schemas.RecommendAnswer)
async def recommend(request: Request, asked: schemas.RecommendRequest) -> Response:
    """Recommend items to users, for histories, or (LC-Rec) for a query in words."""
    served = _models(request).current  # from here to `ask` nothing is awaited, so this model still answers
    question = read_question(served.model, asked.model_dump(exclude_unset=True))
    return JSONAnswer(await _unless_gone(request, served.batcher.ask(question)))


@questions.post("/similar-items", response_model=schemas.SimilarItemsAnswer)
async def similar_items(request: Request, asked: schemas.SimilarItemsRequest) -> Response:
    """List the items that are most similar to items, by the cosine of the model's vectors."""
    served = _models(request).current
    question = ItemQuestion.read(served.model, asked.items, asked.k, asked.candidates)
    return JSONAnswer(await _unless_gone(request, served.batcher.ask(question)))


@questions.get("/items", response_model=schemas.TitleSearchAnswer)
def items(request: Request, asked: Annotated[schemas.TitleSearch, Query()]) -> Response:
    """Find items whose titles have all words, ignoring case."""
    table = _models(request).current.model.catalogue.table
    if "title" not in table.column_names:
        raise BadRequest("title", asked.title, "item ids", "this model's catalogue has no titles")
    found = table.filter(_has_words(table["title"], asked.title.split())).select(["item_id", "title"])
    rows = found.slice(0, asked.limit).rename_columns(["item", "title"]).to_pylist()
    return JSONAnswer({"items": rows, "found": found.num_rows})


@questions.post("/reload", response_model=schemas.ReloadAnswer)
async def reload(request: Request, asked: schemas.ReloadRequest | None = None) -> Response:
    """Serve another model, or the folder of the command line again. Calls go on; a model that fails is not served.

    Only a server with an API key allows it. To go back, send the `folder` of `previous`, or the name on the Hub.
    """
    if request.app.state.settings.api_key is None:
        advice = "start the server with --api-key-file, or send its process SIGHUP"
        raise Refused(403, BadRequest("authorization", "a server without a key", "an API key", advice))
    models = _models(request)
    name = models.source if asked is None or asked.model is None else asked.model
    try:
        new, old = await models.reload(name)
    except CLLM4RecError as error:
        raise BadRequest("model", name, "a model that can be loaded and answers", str(error)) from error
    return JSONAnswer({"model": new.model_dump(), "previous": old.model_dump()})


@questions.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return counts and times in the text format of Prometheus."""
    return Response(request.app.state.metrics.text(), headers={"content-type": CONTENT_TYPE})


@probes.get("/health", response_model=schemas.Health)
async def health(request: Request) -> Response:
    """Return the state of the server and the model that it serves. Needs no key."""
    models, counts = _models(request), request.app.state.metrics
    return JSONAnswer(
        {
            "status": "ok",
            "version": __version__,
            "model": models.current.info.model_dump(),
            "calls": counts.calls,
            "batches": counts.batches,
            "users_waiting": models.users_waiting,
        }
    )


@probes.get("/ready", response_model=schemas.Readiness, responses={503: {"model": schemas.Readiness}})
async def ready(request: Request) -> Response:
    """Return whether the server takes calls: 503 while its queue is full. Needs no key."""
    is_ready = _models(request).ready
    return JSONAnswer({"ready": is_ready}, 200 if is_ready else 503)


def _has_words(titles: pa.ChunkedArray, words: list[str]) -> pa.ChunkedArray:
    """Return a mask of titles that contain every word, ignoring case."""
    found = [pc.match_substring(titles, word, ignore_case=True) for word in words]
    return functools.reduce(pc.and_, found)


async def _unless_gone(request: Request, answered: asyncio.Future[Any]) -> Any:
    """Return the answer. If the client disconnects first, cancel the call, so that it is never computed."""
    disconnected = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answered, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise client_gone()
        return answered.result()
    finally:
        answered.cancel()
        disconnected.cancel()


# Handlers are coroutines: Starlette runs plain functions in threads, of which there are few.


async def _refused(request: Request, error: Any) -> Response:
    return refusal(error)


async def _bad_request(request: Request, error: Any) -> Response:
    return refusal(Refused(400, error))


async def _invalid(request: Request, error: Any) -> Response:
    fields = list(REQUESTS[request.scope["route"].path].model_fields)
    if _models(request).current.model.scores_catalogue:
        fields = [name for name in fields if name not in SEARCH_FIELDS]
    return refusal(Refused(400, as_bad_request(error.errors(), fields)))


async def _bad_question(request: Request, error: Any) -> Response:
    what_to_do = f"{error.what_to_do}, or leave them out" if error.skippable else error.what_to_do
    return refusal(Refused(400, BadRequest(error.argument, error.value, error.allowed, what_to_do)))


async def _error_of_ours(request: Request, error: Exception) -> Response:
    return refusal(Refused(400, BadRequest("request", None, "what the model can read and answer", str(error))))


async def _busy(request: Request, error: Any) -> Response:
    reason = BadRequest("queue", error.waiting, f"{error.capacity} users waiting", "ask again in a second")
    return refusal(Refused(503, reason, {"retry-after": "1"}))


async def _no_such_route(request: Request, error: Any) -> Response:
    if error.__cause__ is not None:  # FastAPI wraps any exception while a body is read
        raise error.__cause__
    got = f"{request.method} {request.url.path}"
    return refusal(Refused(error.status_code, BadRequest("path", got, ROUTES, "ask one of these"), error.headers))


__all__ = ["ServiceSettings", "make_service"]
