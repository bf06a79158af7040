"""What is refused, and how each interface says so: in the form that its clients read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

OPENAI_ROUTES = ("/v1/embeddings",)
COHERE_ROUTES = ("/v1/rerank", "/v2/rerank")
# What text-embeddings-inference calls them.
TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Pydantic's word for what `schemas.Text` refuses.
NO_TEXT = "string_pattern_mismatch"
SHOWN = 3
# After which a client may ask again whether the model is loaded, or another server is there.
TRY_AGAIN_SECONDS = 5.0


class ModelLostError(BaseException):
    """The model can compute nothing any more. It ends the model's thread, which no exception of a request does."""


class Refused(Exception):
    """A request that is not done, with the reason that its client is told.

    Attributes:
        status: HTTP's.
        reason: value, rule and remedy. It goes to the client, never into the log.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those that the status wants."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def loading() -> Refused:
    """Nothing can be computed yet."""
    return Refused(503, "the model is being loaded: try again in a moment.", TRY_AGAIN_SECONDS)


def closing(failed: bool = False) -> Refused:
    """Nothing is computed any more, because the server is being closed, or because the model has failed for good."""
    why = "the model has failed, and the server ends" if failed else "the server is being closed"
    return Refused(503, f"{why}: ask another one, or try again in a moment.", TRY_AGAIN_SECONDS)


def error_body(path: str, status: int, reason: str) -> bytes:
    """The body of an answer that is an error, as JSON in ASCII: a reason may quote what is no Unicode."""
    content: dict[str, Any]
    if path in OPENAI_ROUTES:
        kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        content = {"error": {"message": reason, "type": kind, "param": None, "code": None}}
    elif path in COHERE_ROUTES:
        content = {"message": reason, "detail": reason}
    else:
        content = {"error": reason, "error_type": TEI_TYPES.get(status, "Validation")}
    return json.dumps(content).encode("ascii")


def validation_reason(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a body, in one line; the places that are wrong are named, their values not repeated."""
    told: dict[str, None] = {}
    for error in errors:
        place = ".".join(str(part) for part in error["loc"][1:]) or "the body"
        if error["type"] == "json_invalid":
            return f"the body is no JSON: {error.get('ctx', {}).get('error', 'it cannot be read')}"
        message = "is empty or white space only: give a text" if error["type"] == NO_TEXT else error["msg"]
        told[f"{place}: {message}"] = None
    shown = list(told)[:SHOWN]
    return "; ".join(shown) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
