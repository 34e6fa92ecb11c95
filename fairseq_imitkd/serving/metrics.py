"""What a server has done so far, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """Counts of one server, apart from those of others in the process.

    Args:
        waiting: how many sentences wait at the moment.
    """

    def __init__(self, waiting: Callable[[], float]):
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "imitkd_requests",
            "Requests answered, by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "imitkd_request_seconds",
            "From a request for translations to its answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._sentences = Counter(
            "imitkd_sentences", "Sentences translated, empty ones included", registry=self.registry
        )
        self._source_tokens = Counter("imitkd_source_tokens", "Tokens that they had", registry=self.registry)
        self._target_tokens = Counter(
            "imitkd_target_tokens", "Tokens of their translations", registry=self.registry
        )
        self._batches = Histogram(
            "imitkd_batch_sentences",
            "Sentences that the model translated at once",
            buckets=SENTENCES,
            registry=self.registry,
        )
        self._model = Histogram(
            "imitkd_translate_seconds",
            "Time that a batch took the model",
            buckets=SECONDS,
            registry=self.registry,
        )
        Gauge("imitkd_waiting_sentences", "Sentences not yet begun", registry=self.registry).set_function(
            waiting
        )

    def answered(self, path: str, status: int) -> None:
        """A request to this path, or to another if it is none of the server's."""
        self._requests.labels(path, str(status)).inc()

    def asked(self, seconds: float) -> None:
        """A request for translations, whatever became of it."""
        self._seconds.observe(seconds)

    def translated(self, sentences: int, source_tokens: int, target_tokens: int) -> None:
        """A request's sentences."""
        self._sentences.inc(sentences)
        self._source_tokens.inc(source_tokens)
        self._target_tokens.inc(target_tokens)

    def batch(self, sentences: int, seconds: float) -> None:
        """One that the model has translated."""
        self._batches.observe(sentences)
        self._model.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' format, whose media type is :data:`CONTENT_TYPE`."""
        return generate_latest(self.registry)
