"""What the interfaces have in common: answers as JSON, rankings, and the errors that the OpenAPI page tells."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from ..errors import Refused

REASONS = {
    400: "The body cannot be read.",
    401: "A token is needed.",
    413: "The body is too large, or has too many tokens.",
    422: "The body is not what it should be.",
    429: "Too much waits already; Retry-After says when to try again.",
    500: "The server failed at this request.",
    503: "The model is being loaded or has failed, or the answer took too long.",
}


def errors(model: type[BaseModel], *more: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route."""
    told = REASONS | dict.fromkeys(more, "It cannot be done.")
    return {status: {"model": model, "description": reason} for status, reason in sorted(told.items())}


def answer(content: Any) -> Response:
    """An answer as JSON; it was made here, so nobody checks it again."""
    return Response(to_json(content), media_type="application/json")


def best_first(scores: np.ndarray, top: int | None = None) -> list[int]:
    """Places of the best, as `FlippedMatcher.rank` orders them."""
    return np.argsort(-scores, kind="stable")[:top].tolist()


def check_dimensions(asked: int | None, dimension: int) -> None:
    """Refuse vectors of another length than the model's."""
    if asked is not None and asked != dimension:
        raise Refused(422, f"dimensions: vectors have {dimension} numbers here: ask for these, or leave it out.")
