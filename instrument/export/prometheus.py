"""Metrics for Prometheus (extra `prometheus`): counters of steps, skipped steps and events by code, gauges of loss and gradient norm."""

from __future__ import annotations

import os
from typing import Any

from instrument.events import Event
from instrument.export.base import Exporter, needed
from instrument.history import StepRecord
from latent_drift.errors import UsageError


class PrometheusExporter(Exporter):
    """Serves metrics over HTTP, or puts them into a registry that the caller serves.

    latent_drift_steps_total, latent_drift_skipped_steps_total, latent_drift_clipped_steps_total, latent_drift_events_total{code, name, action},
    latent_drift_loss, latent_drift_gradient_norm, latent_drift_learning_rate; each with the process's rank (empty in a single one).

    Args:
        port: where to serve http://host:port/metrics; 0 takes a free one (see `port`), None serves nothing. The processes of a distributed job
            on one machine each take the port plus their rank there (LOCAL_RANK).
        registry: where the metrics are registered; without one, a registry of this exporter's own.
        address: the interface to serve on.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        UsageError: the port is taken.
    """

    def __init__(self, port: int | None = None, registry: Any = None, address: str = "0.0.0.0") -> None:
        super().__init__()
        client = needed("prometheus_client", "Prometheus metrics", "prometheus-client", "prometheus")
        self.registry = registry if registry is not None else client.CollectorRegistry()
        self.port = port
        self._server: Any = None
        self._thread: Any = None
        self._rank = ""
        labels = ("rank",)

        def counter(name: str, text: str, *more: str) -> Any:
            return client.Counter(f"latent_drift_{name}", text, (*labels, *more), registry=self.registry)

        def gauge(name: str, text: str) -> Any:
            return client.Gauge(f"latent_drift_{name}", text, labels, registry=self.registry)

        self._steps = counter("steps", "Optimizer steps.")
        self._skipped = counter("skipped_steps", "Steps that were left out or undone.")
        self._clipped = counter("clipped_steps", "Steps whose gradient was clipped.")
        self._events = counter("events", "Numerical events.", "code", "name", "action")
        self._gauges = {
            "loss": gauge("loss", "The latest loss."),
            "gradient_norm": gauge("gradient_norm", "Global gradient norm of the latest step, before clipping."),
            "learning_rate": gauge("learning_rate", "Learning rate of the latest step."),
        }
        if port is not None:
            self._serve(client, port + _local_rank() if port else 0, address)

    def _serve(self, client: Any, port: int, address: str) -> None:
        try:
            self._server, self._thread = client.start_http_server(port, addr=address, registry=self.registry)
        except OSError as error:
            raise UsageError(f"Prometheus metrics cannot be served on port {port}: {error.strerror}. Give a free port") from error
        self.port = self._server.server_port

    def begin(self, rank: int | None) -> None:
        """Label what follows with the rank; every metric exists from now on."""
        super().begin(rank)
        self._rank = "" if rank is None else str(rank)
        for metric in (self._steps, self._skipped, self._clipped):
            metric.labels(self._rank)

    def step(self, record: StepRecord) -> None:
        """Count the step, set the gauges. A non-finite number is one in Prometheus too."""
        self._steps.labels(self._rank).inc()
        if record.outcome in ("skipped", "rolled-back"):
            self._skipped.labels(self._rank).inc()
        elif record.outcome == "clipped":
            self._clipped.labels(self._rank).inc()
        for name, value in (("loss", record.loss), ("gradient_norm", record.gradient_norm), ("learning_rate", record.learning_rate)):
            if value is not None:
                self._gauges[name].labels(self._rank).set(value)

    def event(self, event: Event, new: int) -> None:
        """Count its occurrences."""
        self._events.labels(self._rank, event.code, event.name, event.action).inc(new)

    def close(self) -> None:
        """The run is over. The metrics stay readable: a scraper comes when it comes."""

    def stop(self) -> None:
        """Serve no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


def _local_rank() -> int:
    local = os.environ.get("LOCAL_RANK", "")
    return int(local) if local.isdecimal() else 0
