"""Metrics for OpenTelemetry (extra `opentelemetry`): counters of steps, skipped steps and events by code, gauges of loss and gradient norm."""

from __future__ import annotations

import logging
from typing import Any

from instrument.events import Event
from instrument.export.base import Exporter, needed
from instrument.history import StepRecord

_LOG = logging.getLogger(__name__)


class OpenTelemetryExporter(Exporter):
    """Records latent_drift.steps, .skipped_steps, .clipped_steps, .events{code, name, action}, .loss, .gradient_norm and .learning_rate with a meter.

    Args:
        provider: the MeterProvider whose meter is used; without one, the process's own, as `opentelemetry-instrument` or `set_meter_provider`
            set it. While that is nobody's, nothing is sent, and a warning says so.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        super().__init__()
        metrics = needed("opentelemetry.metrics", "OpenTelemetry metrics", "opentelemetry-sdk", "opentelemetry")
        if provider is None:
            provider = metrics.get_meter_provider()
            if type(provider).__module__.startswith("opentelemetry.metrics"):  # the API's stand-in, which drops everything
                _LOG.warning(
                    "OpenTelemetry has no meter provider in this process: nothing will be sent. Start it under opentelemetry-instrument, "
                    "or call opentelemetry.metrics.set_meter_provider before"
                )
        meter = provider.get_meter("latent_drift")
        self._provider = provider
        self._attributes: dict[str, str | int] = {}
        self._steps = meter.create_counter("latent_drift.steps", "1", "Optimizer steps")
        self._skipped = meter.create_counter("latent_drift.skipped_steps", "1", "Steps that were left out or undone")
        self._clipped = meter.create_counter("latent_drift.clipped_steps", "1", "Steps whose gradient was clipped")
        self._events = meter.create_counter("latent_drift.events", "1", "Numerical events")
        self._loss = meter.create_gauge("latent_drift.loss", "1", "The latest loss")
        self._norm = meter.create_gauge("latent_drift.gradient_norm", "1", "Global gradient norm of the latest step, before clipping")
        self._rate = meter.create_gauge("latent_drift.learning_rate", "1", "Learning rate of the latest step")

    def begin(self, rank: int | None) -> None:
        """Attribute what follows to the rank."""
        super().begin(rank)
        self._attributes = {} if rank is None else {"rank": rank}

    def step(self, record: StepRecord) -> None:
        """Count the step, set the gauges."""
        self._steps.add(1, self._attributes)
        if record.outcome in ("skipped", "rolled-back"):
            self._skipped.add(1, self._attributes)
        elif record.outcome == "clipped":
            self._clipped.add(1, self._attributes)
        for gauge, value in ((self._loss, record.loss), (self._norm, record.gradient_norm), (self._rate, record.learning_rate)):
            if value is not None:
                gauge.set(value, self._attributes)

    def event(self, event: Event, new: int) -> None:
        """Count its occurrences."""
        self._events.add(new, {**self._attributes, "code": event.code, "name": event.name, "action": event.action})

    def close(self) -> None:
        """Send what the provider still holds."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush()
