"""Metrics of a run for other people's tools: TensorBoard, Prometheus, OpenTelemetry. Each is an extra, and says how to install it where it is not.

    with instrument.stable() as run:
        attach(run, PrometheusExporter(port=9464))

What has no exporter here (W&B, MLflow, a log) takes `run.subscribe(on_step=..., on_event=...)`.
"""

from __future__ import annotations

from instrument.export.base import Exporter, attach, exporter_for
from instrument.export.opentelemetry import OpenTelemetryExporter
from instrument.export.prometheus import PrometheusExporter
from instrument.export.tensorboard import TensorBoardExporter

__all__ = ["Exporter", "OpenTelemetryExporter", "PrometheusExporter", "TensorBoardExporter", "attach", "exporter_for"]
