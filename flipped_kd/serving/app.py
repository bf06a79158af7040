"""The application: its routes, and how errors are told."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from ..utils.version import __version__
from .bounds import Bounds
from .errors import Refused, error_body, validation_reason
from .guard import Guard
from .interfaces import cohere, openai, own, tei
from .page import add_pages
from .service import Service

DESCRIPTION = """\
A model trained by flipped_kd: text-embeddings-inference's routes, OpenAI's /v1/embeddings, Cohere's and Jina's
/v1/rerank, and its own /match and /search. Numbers are those of `FlippedMatcher`.
"""


def create_app(service: Service) -> FastAPI:
    """The ASGI application before a service, which is opened and closed by whoever runs it."""
    settings = service.settings
    app = FastAPI(
        title="flipped_kd",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(Bounds, settings=settings, metrics=service.metrics),
            Middleware(Guard, settings=settings),
        ],
        redirect_slashes=False,
        telemetry=TelemetryConfig(tracing=False, metrics=False, logs=False),
    )
    for interface in (tei, openai, cohere, own):
        interface.add_routes(app, service)
    add_pages(app)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _error(request, error.status, error.reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _error(request, 422, validation_reason(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _error(request, error.status_code, str(error.detail), dict(error.headers or {}))

    return app


def _error(request: Request, status: int, reason: str, headers: dict[str, Any] | None = None) -> Response:
    body = error_body(request.url.path, status, reason)
    return Response(body, status, headers, media_type="application/json")
