"""What a server is told: where it listens, who may ask, and how much may be asked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from ..utils.checks import check_range, require, require_integer

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """How much may be asked. What goes over a limit is refused with its reason before the model is asked.

    Attributes:
        body_bytes: of a request's body (413).
        texts: of a request; a pair counts as two, a query with n documents as n + 1 (422).
        tokens: of a request, what occurs twice once (413).
        waiting_requests: requests that wait for the model (429).
        waiting_tokens: tokens that wait for the model (429).
        seconds: that a request may take in all (503).
    """

    body_bytes: int = 2 << 20
    texts: int = 2048
    tokens: int = 131_072
    waiting_requests: int = 512
    waiting_tokens: int = 1 << 20
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, why in (
            ("body_bytes", "no request fits into less"),
            ("texts", "a pair is two texts"),
            ("tokens", "a text is at least one"),
            ("waiting_requests", "each request waits for a moment"),
            ("waiting_tokens", "each request waits for a moment"),
        ):
            require_integer(name, getattr(self, name), 2 if name == "texts" else 1, why)
        check_range("seconds", self.seconds, 0, open_low=True)
        require(
            self.waiting_tokens >= self.tokens,
            "waiting_tokens",
            self.waiting_tokens,
            f"give at least as many as one request may have, {self.tokens}",
        )


@dataclass(frozen=True)
class Settings:
    """How a server is started.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        token: what clients must send as `Authorization: Bearer TOKEN`; None asks for none.
        allowed_hosts: further names that a request's Host may have (see `host_names`).
        name: of the model, as clients are told.
        log_requests: a line of log for each request: method, route, status, milliseconds. Never a text.
        batch_tokens: tokens read in one go; None takes what suits the device.
        wait_ms: how long the model waits for the next request to read with those there are, at most.
        batch_size: rows of a forward pass, at most.
        limits: how much may be asked.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    name: str = "flipped_kd"
    log_requests: bool = False
    batch_tokens: int | None = None
    wait_ms: float = 5.0
    batch_size: int = 32
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        require_integer("port", self.port, 0, "0 takes a free one")
        require(self.port < 65536, "port", self.port, "give one below 65536")
        check_range("wait_ms", self.wait_ms, 0, 1000)
        require_integer("batch_size", self.batch_size, 1, "rows are read in batches")
        if self.batch_tokens is not None:
            require_integer("batch_tokens", self.batch_tokens, 1, "rows are read in batches")
        if self.token is not None and not self.token:
            raise ValueError("the token is empty: give one, or none at all")

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def host_names(self) -> list[str]:
        """Names that a request's Host may have.

        A page of another site can have its name lead to 127.0.0.1 (DNS rebinding), and would then be let in: on
        loopback only the names of this machine are taken. Elsewhere a name is not known, and the token guards.
        """
        if not self.is_loopback and not self.allowed_hosts:
            return ["*"]
        return [*LOOPBACK_NAMES, self.host, *self.allowed_hosts]
