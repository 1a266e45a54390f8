"""What every exporter is, how it is joined to a run, and which one a command line's words mean."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from instrument.events import Event
from instrument.history import StepRecord
from latent_drift.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from instrument.run import Run


class Exporter(ABC):
    """Sends a run's steps and events somewhere. One may serve several runs, one after another."""

    def __init__(self) -> None:
        self._counted: dict[tuple[object, ...], int] = {}

    def begin(self, rank: int | None) -> None:
        """A run starts on the process of this rank (None: the only one)."""
        self._counted.clear()

    @abstractmethod
    def step(self, record: StepRecord) -> None:
        """An optimizer step is over."""

    @abstractmethod
    def event(self, event: Event, new: int) -> None:
        """An event occurred `new` times since it was last told of."""

    @abstractmethod
    def close(self) -> None:
        """The run is over: nothing may be left unsent."""

    def tell(self, event: Event) -> None:
        """An event whose `count` is the run's total so far."""
        before = self._counted.get(event.key, 0)
        self._counted[event.key] = event.count
        if event.count > before:
            self.event(event, event.count - before)


def attach(run: Run, exporter: Exporter) -> None:
    """Send this run's steps and events to `exporter` until the block closes.

    An exporter that raises is logged once and dropped; training goes on.
    """
    exporter.begin(run.rank)
    run.subscriptions.add(exporter.tell, exporter.step, exporter.close, apart=True)


def exporter_for(wanted: str) -> Exporter:
    """The exporter that `--export KIND[:WHERE]` means.

    Raises:
        UsageError: there is no such kind, or WHERE is not what it needs.
        MissingExtraError: its package is not installed.
    """
    from instrument.export import OpenTelemetryExporter, PrometheusExporter, TensorBoardExporter

    kind, _, where = wanted.partition(":")
    if kind == "tensorboard":
        return TensorBoardExporter(where or "runs")
    if kind == "prometheus":
        if where and not where.isdecimal():
            raise UsageError(f"--export prometheus:PORT needs a port number, such as prometheus:9464; got {where!r}")
        return PrometheusExporter(port=int(where) if where else 9464)
    if kind == "opentelemetry":
        return OpenTelemetryExporter()
    raise UsageError(f"--export knows tensorboard:DIR, prometheus:PORT and opentelemetry; got {wanted!r}")


def needed(module: str, feature: str, package: str, extra: str) -> Any:
    """An optional module.

    Raises:
        MissingExtraError: it is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, package, extra) from error
