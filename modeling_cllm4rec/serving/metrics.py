"""Counts and times of the service, in the text format of Prometheus."""

from __future__ import annotations

from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modeling_cllm4rec.serving.schemas import ModelInfo

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
"""Content type of `/metrics`."""


class Metrics:
    """The metrics of one application, in a registry of their own.

    Attributes:
        batches, calls: batches and calls answered so far.
    """

    def __init__(self) -> None:
        self.batches = self.calls = 0
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry, "namespace": "cllm4rec"}
        self.requests = Counter("requests", "Requests by route, method and status.", ("route", "method", "status"), **own)
        self.request_seconds = Histogram("request_seconds", "Seconds of a request.", ("route",), buckets=SECONDS, **own)
        self.running = Gauge("requests_running", "Requests that wait for their answer.", **own)
        self.batch_users = Histogram("batch_users", "Users and items of a batch.", buckets=USERS, **own)
        self.batch_seconds = Histogram("batch_seconds", "Seconds of a batch.", buckets=SECONDS, **own)
        self.users_waiting = Gauge("users_waiting", "Users and items in the queue.", **own)
        self.queue_capacity = Gauge("queue_capacity", "Users and items that may wait.", **own)
        self.reloads = Counter("reloads", "Attempts to replace the model.", ("outcome",), **own)
        self.loaded = Gauge("model_loaded_timestamp_seconds", "Time at which the model was loaded.", **own)
        self.model = Gauge("model_info", "The served model.", ("name", "revision", "model_type"), **own)
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)

    def count_batch(self, users: int, calls: int, seconds: float) -> None:
        """Count a batch."""
        self.batches += 1
        self.calls += calls
        self.batch_users.observe(users)
        self.batch_seconds.observe(seconds)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, method, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def show_model(self, model: ModelInfo) -> None:
        """Name the served model."""
        self.model.clear()
        self.model.labels(model.name, model.revision, model.model_type).set(1)
        self.loaded.set_to_current_time()

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return prometheus_client.generate_latest(self.registry)


__all__ = ["CONTENT_TYPE", "Metrics"]
