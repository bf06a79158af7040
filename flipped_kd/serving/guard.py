"""Who may ask, and what browsers are told: token, names of the host, headers."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import error_body
from .settings import Settings

# Nothing on them is anybody's: what a page asks for is guarded itself.
OPEN_ROUTES = ("/", "/health", "/docs", "/openapi.json")
# Of everything that is no page: nothing may be run, loaded or framed.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets in who has the token, if there is one, and asks for a name of this host."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._token = None if settings.token is None else settings.token.encode()
        names = settings.host_names
        self._names = None if "*" in names else {name.lower().strip("[]") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400 or 401, or pass the request on."""
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        if self._names is not None and _host_name(headers.get("host", "")) not in self._names:
            reason = "this name is not one of the server's: ask by localhost, or start it with --allow-host NAME."
            await answer_error(scope, send_guarded, 400, reason)
        elif self._token is not None and scope["path"] not in OPEN_ROUTES and not self._has_token(headers):
            reason = "a token is needed: send the header Authorization: Bearer TOKEN."
            await answer_error(scope, send_guarded, 401, reason, {"WWW-Authenticate": "Bearer"})
        else:
            await self.app(scope, receive, send_guarded)

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared in a time that says nothing of how much of it was right.
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token or b"")
        return same and scheme.lower() == "bearer"


async def answer_error(
    scope: Scope, send: Send, status: int, reason: str, headers: dict[str, str] | None = None
) -> None:
    """Answer with an error in the form of the route's interface."""
    body = error_body(scope["path"], status, reason)
    start = MutableHeaders({**HEADERS, **(headers or {})})
    start["Content-Type"], start["Content-Length"] = "application/json", str(len(body))
    await send({"type": "http.response.start", "status": status, "headers": start.raw})
    await send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """Of a Host header, without its port, in lower case; "" of none that can be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
