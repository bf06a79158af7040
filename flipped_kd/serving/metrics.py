"""What Prometheus is told: requests, waiting times, rounds of the model, the corpus. Never a text."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .service import Service

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one server; also the `Observer` of its batcher.

    Attributes:
        open_requests: how many are being answered.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        count, spread = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self._requests = count("flipped_kd_requests", "Requests that were answered.", ["route", "status"])
        self.open_requests = Gauge(
            "flipped_kd_open_requests", "Requests begun and not answered; this one too.", registry=self.registry
        )
        self._seconds = spread(
            "flipped_kd_request_seconds", "From a request's head to its answer.", ["route"], buckets=SECONDS
        )
        self._round_seconds = spread("flipped_kd_round_seconds", "Of the model, reading in one go.", buckets=SECONDS)
        self._round_rows = spread("flipped_kd_round_rows", "Pairs and texts read in one go.", buckets=SIZES)
        self._round_requests = spread("flipped_kd_round_requests", "Requests read in one go.", buckets=SIZES)
        self._tokens = count("flipped_kd_tokens", "Tokens read.")
        self._joined = count("flipped_kd_joined_rows", "Rows that another request waited for already.")
        self._dropped = count("flipped_kd_dropped_requests", "Requests gone, or too late, before they were done.")
        self._reloads = count("flipped_kd_corpus_reloads", "Times that the corpus was read anew.", ["result"])
        for name, told, read in (
            ("waiting_requests", "Requests that wait for the model.", lambda: service.batcher.waiting[0]),
            ("waiting_tokens", "Tokens that wait for the model.", lambda: service.batcher.waiting[1]),
            ("corpus_texts", "Texts of the corpus.", lambda: corpus_size(service) or 0),
            ("ready", "Whether model and corpus are loaded.", lambda: service.is_ready),
        ):
            Gauge(f"flipped_kd_{name}", told, registry=self.registry).set_function(read)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def reloaded(self, done: bool) -> None:
        """The corpus was to be read anew."""
        self._reloads.labels("done" if done else "failed").inc()

    def round_done(self, requests: int, rows: int, tokens: int, seconds: float) -> None:
        """See `Observer`."""
        self._round_requests.observe(requests)
        self._round_rows.observe(rows)
        self._tokens.inc(tokens)
        self._round_seconds.observe(seconds)

    def joined(self, rows: int) -> None:
        """See `Observer`."""
        self._joined.inc(rows)

    def dropped(self) -> None:
        """See `Observer`."""
        self._dropped.inc()

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


def corpus_size(service: Service) -> int | None:
    """Texts of the corpus; None without one."""
    if service.corpus is None or service.corpus.index is None:
        return None
    return len(service.corpus.index)
