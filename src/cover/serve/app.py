"""Routes of the server and its web page, as a FastAPI application. The OpenAPI document is at /openapi.json."""

import asyncio
import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cover import __version__
from cover.model.text import PROMPT
from cover.serve.middleware import BUG, App, LimitsMiddleware, Receive, Refused
from cover.serve.responses import ErrorResponse, ExplainResponse, ModelDescription, PredictResponse, StatusResponse
from cover.serve.service import ExplainQuery, PredictQuery, Service
from cover.serve.uploads import FIELD

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes, and some of them are names
# that only exist inside a function.

T = TypeVar("T")

REASONS = {
    400: "the form, or the request itself, is damaged",
    401: "the key is missing or wrong (only with --key-file)",
    408: "the body arrived too slowly",
    413: "the body is too large",
    415: "the body is neither a form nor a file, or the file is neither a video nor an image",
    422: "a parameter is wrong, or the file cannot be read, is too long, too large or too slow to decode",
    429: "too many predictions or explanations are in progress",
    500: "a bug; the server's log has a line about it",
    503: "the server is about to stop, or too busy to answer in time",
}
MOST_WINDOWS, MOST_CLASSES, LONGEST_HEAD, LONGEST_CLASS, LONGEST_NAME = 32, 1000, 200, 1000, 200
MOST_TYPED, LONGEST_TYPED = 100, 100  # class names of a request, characters of a name and of the prompt
MODEL_NOTE = "name of a model of the server (default: the first)"
_FORM = {"type": "object", "required": [FIELD], "properties": {FIELD: {"type": "string", "format": "binary"}}}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "video/*": _BYTES,
            "image/*": _BYTES,
            "application/octet-stream": _BYTES,
        },
    }
}


def make_app(service: Service, page: bool = False, key: str | None = None, frames: Sequence[str] = ()) -> App:
    """The application of a service, behind its `LimitsMiddleware`.

    `page` adds the web page at `/`. `key` is the key that clients must send; None: no key. `frames`: sites that may
    show the page in a frame.
    """
    from fastapi import FastAPI

    # FastAPI's pages of documentation load scripts from other servers, so they are off.
    app = FastAPI(title="cover serve", version=__version__, docs_url=None, redoc_url=None)
    _add_error_handlers(app)
    _add_routes(app, service, key is not None)
    _add_predict(app, service, key is not None)
    _add_explain(app, service, key is not None)
    if page:
        # The page needs no key, so with a key it is without names, and asks for the models when it has the key.
        add_page(app, [] if key else [model.describe() for model in service.models.values()], frames)
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    return LimitsMiddleware(app, service.limits, service.metrics.answered, routes, key)


def _reasons(*statuses: int, key: bool) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route in the OpenAPI document: `statuses`, and those that every route has."""
    all_statuses = sorted({400, 408, 413, 500, *statuses, *([401] if key else [])})
    return {status: {"model": ErrorResponse, "description": REASONS[status]} for status in all_statuses}


def _add_error_handlers(app: Any) -> None:
    """Answer every error with an `ErrorResponse`."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def problem(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse(asdict(ErrorResponse(text)), status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return problem(500, BUG)  # the exception also reaches the middleware, which logs it


def _add_routes(app: Any, service: Service, key: bool) -> None:
    from fastapi import Query, Response
    from fastapi.responses import JSONResponse

    model_rule = Query(max_length=LONGEST_NAME, description=MODEL_NOTE)

    @app.get("/healthz", responses=_reasons(key=False), summary="Whether the process is alive")
    async def healthz() -> StatusResponse:
        return StatusResponse("alive")

    @app.get("/readyz", responses=_reasons(503, key=False), summary="Whether the server accepts predictions")
    async def readyz() -> StatusResponse:
        if not service.ready:
            raise Refused(503, "the server is about to stop" if service.draining else "the model does not answer")
        return StatusResponse("ready")

    @app.get(
        "/metrics",
        responses={**_reasons(key=key), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        summary="Counters and times, for Prometheus",
    )
    async def metrics() -> Response:
        text, kind = service.metrics.render()
        return Response(text, headers={"content-type": kind})

    @app.get("/v1/models", responses=_reasons(key=key), summary="The models with their heads and data sets")
    async def models() -> list[ModelDescription]:
        return [model.describe() for model in service.models.values()]

    @app.get(
        "/v1/model",
        responses=_reasons(422, key=key),
        response_class=JSONResponse,
        summary="The heads of a model and their classes",
    )
    async def model(model: Annotated[str, model_rule] = "") -> dict[str, list[str]]:
        return {name: list(head.classes) for name, head in service.model(model).heads.items()}


def _add_predict(app: Any, service: Service, key: bool) -> None:
    from fastapi import Query, Request
    from pydantic import StringConstraints

    TypedName = Annotated[str, StringConstraints(max_length=LONGEST_TYPED)]
    top_rule = Query(ge=1, le=MOST_CLASSES, description="classes of each head")
    head_rule = Query(max_length=LONGEST_HEAD, description="only this head (may be repeated; default: default_heads)")
    window_rule = Query(ge=0, le=MOST_WINDOWS, description="also predict each of this number of equal parts of a video")
    model_rule = Query(max_length=LONGEST_NAME, description=MODEL_NOTE)
    typed_rule = Query(
        max_length=MOST_TYPED,
        description="class names in place of the heads, where the model has a text network (may be repeated)",
    )
    prompt_rule = Query(max_length=LONGEST_TYPED, description=f'text of such a class (default: "{PROMPT}")')

    @app.post(
        "/v1/predict",
        openapi_extra=BODY,
        responses=_reasons(415, 422, 429, 503, key=key),
        summary="The most likely classes of a video or an image",
    )
    async def predict(
        request: Request,
        top: Annotated[int, top_rule] = 5,
        head: Annotated[list[str], head_rule] = [],  # noqa: B006
        timeline: Annotated[int, window_rule] = 0,
        model: Annotated[str, model_rule] = "",
        classes: Annotated[list[TypedName], typed_rule] = [],  # noqa: B006
        prompt: Annotated[str, prompt_rule] = "",
    ) -> PredictResponse:
        query = PredictQuery(tuple(dict.fromkeys(head)), top, timeline, model, tuple(classes), prompt)
        return await _answered(request, service, query, lambda path: service.predict(path, query))


def _add_explain(app: Any, service: Service, key: bool) -> None:
    from fastapi import Query, Request

    head_rule = Query(max_length=LONGEST_HEAD, description="the head whose prediction is explained")
    class_rule = Query(
        alias="class",
        max_length=LONGEST_CLASS,
        description="the class whose score is explained (default: the head's most likely class)",
    )
    model_rule = Query(max_length=LONGEST_NAME, description=MODEL_NOTE)

    @app.post(
        "/v1/explain",
        openapi_extra=BODY,
        responses=_reasons(415, 422, 429, 503, key=key),
        summary="Explain a head's prediction: the frames of one view, with a heat map of their patches",
    )
    async def explain(
        request: Request,
        head: Annotated[str, head_rule],
        class_name: Annotated[str | None, class_rule] = None,
        model: Annotated[str, model_rule] = "",
    ) -> ExplainResponse:
        query = ExplainQuery(head, class_name, model)
        return await _answered(request, service, query, lambda path: service.explain(path, query))


async def _answered(
    request: Any, service: Service, query: PredictQuery | ExplainQuery, answer: Callable[[Path], Coroutine[Any, Any, T]]
) -> T:
    """Receive the file of a request and return `answer(path)`. The file is removed afterwards.

    The request counts as in progress until then.
    """
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect

    with service.admitted(), service.uploads.file() as path:
        service.check(query)
        try:
            await service.receive(request.stream(), request.headers.get("content-type", ""), path)
            return await _unless_disconnected(request.receive, answer(path))
        except ClientDisconnect:
            return JSONResponse({}, 499)  # type: ignore[return-value]  # the client does not read it


async def _unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects first, cancel the work and raise ClientDisconnect."""
    from starlette.requests import ClientDisconnect

    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([task, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for each in (task, disconnect):
            each.cancel()
        await asyncio.wait([task, disconnect])


async def _disconnected(receive: Receive) -> None:
    """Wait until the client disconnects. After the body, no other message needs an answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


# --- the page, which uses the same routes as every other client -------------------------------------------------------


def add_page(app: Any, models: Sequence[ModelDescription], frames: Sequence[str] = ()) -> None:
    """Add the page at `/`. `models`: those that it asks; none if it has to request them with a key."""
    from fastapi.responses import HTMLResponse

    text = page_text(models)
    headers = {
        "content-security-policy": _policy(text, frames),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)


def page_text(models: Sequence[ModelDescription]) -> str:
    """The page in one file: its style, its script and the models that it asks, if they are given, are in it."""
    folder = files(__package__) / "page"
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    # As JSON in an element that is not executed. A name cannot end the element, because `<` is written as an escape.
    data = json.dumps([asdict(model) for model in models]).replace("<", "\\u003c")
    title = html.escape(" and ".join(model.name or "unnamed" for model in models) or "a model")
    filled = {"TITLE": title, "STYLE": parts["page.css"], "SCRIPT": parts["page.js"], "MODELS": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], parts["page.html"])


def _policy(text: str, frames: Sequence[str]) -> str:
    """A content security policy: only the page's own style and script, pictures from memory, and this server."""
    style, script = (_digest(re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("style", "script"))
    ancestors = " ".join(frames) or "'none'"
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src blob: data:;"
        f" media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
    )


def _digest(element: re.Match[str] | None) -> str:
    assert element, "the page has one style and one script"
    return f"'sha256-{base64.b64encode(hashlib.sha256(element[1].encode()).digest()).decode()}'"
