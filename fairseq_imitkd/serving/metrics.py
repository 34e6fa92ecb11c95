"""The server's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        waiting: returns the current number of waiting sentences.
    """

    def __init__(self, waiting: Callable[[], float]):
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "imitkd_requests",
            "Answered requests, by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "imitkd_request_seconds",
            "Time from a translation request to its answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._sentences = Counter(
            "imitkd_sentences", "Translated sentences, empty ones included", registry=self.registry
        )
        self._source_tokens = Counter(
            "imitkd_source_tokens", "Tokens of the translated sentences", registry=self.registry
        )
        self._target_tokens = Counter(
            "imitkd_target_tokens", "Tokens of the translations", registry=self.registry
        )
        self._batches = Histogram(
            "imitkd_batch_sentences", "Sentences per batch", buckets=SENTENCES, registry=self.registry
        )
        self._model = Histogram(
            "imitkd_translate_seconds",
            "Time that the model takes for a batch",
            buckets=SECONDS,
            registry=self.registry,
        )
        gauge = Gauge(
            "imitkd_waiting_sentences", "Sentences that the model has not started", registry=self.registry
        )
        gauge.set_function(waiting)

    def count_answer(self, path: str, status: int) -> None:
        """Count an answered request; ``path`` is one of the server's, or ``other``."""
        self._requests.labels(path, str(status)).inc()

    def observe_request(self, seconds: float) -> None:
        """Record the time of a translation request, successful or not."""
        self._seconds.observe(seconds)

    def count_translations(self, sentences: int, source_tokens: int, target_tokens: int) -> None:
        """Count the sentences and tokens of a translated request."""
        self._sentences.inc(sentences)
        self._source_tokens.inc(source_tokens)
        self._target_tokens.inc(target_tokens)

    def observe_batch(self, sentences: int, seconds: float) -> None:
        """Record the size of a batch and the time that the model took for it."""
        self._batches.observe(sentences)
        self._model.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's format, whose media type is :data:`CONTENT_TYPE`."""
        return generate_latest(self.registry)
