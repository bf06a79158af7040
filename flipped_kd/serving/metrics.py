"""What Prometheus is told: requests, waiting times, rounds of the model, the corpus. Never a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .service import Service

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one server; also the `Observer` of its batcher."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "flipped_kd_requests", "Requests that were answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "flipped_kd_request_seconds", "From a request's head to its answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self._round_seconds = Histogram(
            "flipped_kd_round_seconds", "The model's, for the rows it reads in one go.", buckets=SECONDS, registry=registry
        )
        self._round_rows = Histogram(
            "flipped_kd_round_rows", "Pairs and texts read in one go.", buckets=SIZES, registry=registry
        )
        self._round_requests = Histogram(
            "flipped_kd_round_requests", "Requests whose rows were read in one go.", buckets=SIZES, registry=registry
        )
        self._tokens = Counter("flipped_kd_tokens", "Tokens read.", registry=registry)
        self._joined = Counter(
            "flipped_kd_joined_rows", "Rows that another request waited for already.", registry=registry
        )
        self._dropped = Counter(
            "flipped_kd_dropped_requests", "Requests that had gone, or run out of time, unread.", registry=registry
        )
        self._reloads = Counter(
            "flipped_kd_corpus_reloads", "Times that the corpus was read anew.", ["result"], registry=registry
        )
        for name, told, read in (
            ("waiting_requests", "Requests that wait for the model.", lambda: service.batcher.waiting[0]),
            ("waiting_tokens", "Tokens that wait for the model.", lambda: service.batcher.waiting[1]),
            ("corpus_texts", "Texts of the corpus.", lambda: corpus_size(service) or 0),
            ("ready", "Whether model and corpus are loaded.", lambda: service.is_ready),
        ):
            Gauge(f"flipped_kd_{name}", told, registry=registry).set_function(read)

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
