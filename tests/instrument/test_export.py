"""Exporters: what arrives in TensorBoard, Prometheus and OpenTelemetry, and what is said where they are not installed."""

import importlib.util
import math
import socket
import sys
import urllib.request

import pytest

import instrument
from instrument.export import Exporter, OpenTelemetryExporter, PrometheusExporter, TensorBoardExporter, attach, exporter_for
from latent_drift.errors import MissingExtraError, UsageError
from tests.instrument.report.test_folder import train


def needs(module):
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    return pytest.mark.skipif(found is None, reason=f"{module} is not installed")


def guarded(exporter, steps=8, bad=(3, 5)):
    with instrument.stable(profile="guard") as run:
        attach(run, exporter)
        train(steps, bad)
    return run


class Recorder(Exporter):
    def __init__(self):
        super().__init__()
        self.seen = []

    def step(self, record):
        self.seen.append(record.step)

    def event(self, event, new):
        self.seen.append((event.code, new))

    def close(self):
        self.seen.append("closed")


def test_an_exporter_gets_increments_and_the_end():
    exporter = Recorder()
    run = guarded(exporter)
    assert [s for s in exporter.seen if isinstance(s, int)] == list(range(1, 9))
    totals = {}
    for code, new in (s for s in exporter.seen if isinstance(s, tuple)):
        totals[code] = totals.get(code, 0) + new
    expected = {}
    for event in run.events:
        expected[event.code] = expected.get(event.code, 0) + event.count
    assert totals == expected
    assert exporter.seen[-1] == "closed"
    exporter.seen.clear()
    guarded(exporter)
    assert sum(s[1] for s in exporter.seen if isinstance(s, tuple)) == sum(expected.values()), "a second run starts from nothing"


def test_an_exporter_that_fails_does_not_stop_training(caplog):
    class Broken(Recorder):
        def step(self, record):
            raise ConnectionError("away")

    run = guarded(Broken())
    assert run.tally.steps == 8
    assert "training goes on" in caplog.text


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_has_the_scalars(tmp_path):
    run = guarded(TensorBoardExporter(tmp_path))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    norms = read.Scalars("latent_drift/gradient_norm")
    assert [s.step for s in norms] == list(range(1, 9))
    recorded = [r.gradient_norm for r in run.history]
    assert [s.value for s in norms] == pytest.approx(recorded, rel=1e-6, nan_ok=True)
    assert [s.value for s in read.Scalars("latent_drift/skipped_steps")] == [1.0, 2.0]
    assert read.Scalars("latent_drift/events/NS506_nonfinite-gradient_skipped")[-1].value == 2.0


def test_tensorboard_takes_a_writer_and_leaves_it_open():
    class Writer:
        scalars, closed = (), False

        def add_scalar(self, tag, value, step):
            self.scalars = (*self.scalars, (tag, step))

        def flush(self):
            pass

        def close(self):
            self.closed = True

    writer = Writer()
    guarded(TensorBoardExporter(writer))
    assert ("latent_drift/loss", 8) in writer.scalars
    assert not writer.closed


@needs("prometheus_client")
def test_prometheus_serves_the_metrics():
    exporter = PrometheusExporter(port=0, address="127.0.0.1")
    guarded(exporter)
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    assert 'latent_drift_steps_total{rank=""} 8.0' in text
    assert 'latent_drift_skipped_steps_total{rank=""} 2.0' in text
    assert 'latent_drift_events_total{action="skipped",code="NS506",name="nonfinite-gradient",rank=""} 2.0' in text
    assert 'latent_drift_gradient_norm{rank=""}' in text
    exporter.stop()


@needs("prometheus_client")
def test_prometheus_keeps_to_a_given_registry_and_names_a_taken_port():
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    guarded(PrometheusExporter(registry=registry), bad=())
    assert registry.get_sample_value("latent_drift_steps_total", {"rank": ""}) == 8.0
    assert registry.get_sample_value("latent_drift_skipped_steps_total", {"rank": ""}) == 0.0, "a counter exists before it counts"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=f"port {taken.getsockname()[1]}"):
            PrometheusExporter(port=taken.getsockname()[1], address="127.0.0.1")


@needs("opentelemetry.sdk")
def test_opentelemetry_records_the_metrics():
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    guarded(OpenTelemetryExporter(MeterProvider([reader])))
    metrics = {m.name: m.data.data_points for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert metrics["latent_drift.steps"][0].value == 8
    assert metrics["latent_drift.skipped_steps"][0].value == 2
    events = {point.attributes["code"]: point.value for point in metrics["latent_drift.events"]}
    assert events["NS506"] == 2
    assert math.isfinite(metrics["latent_drift.gradient_norm"][0].value)


@needs("opentelemetry.sdk")
def test_opentelemetry_without_a_provider_says_that_nothing_is_sent(caplog):
    guarded(OpenTelemetryExporter())
    assert "nothing will be sent" in caplog.text


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("torch.utils.tensorboard", lambda: TensorBoardExporter("runs"), "tensorboard"),
        ("prometheus_client", PrometheusExporter, "prometheus"),
        ("opentelemetry.metrics", OpenTelemetryExporter, "opentelemetry"),
    ],
)
def test_what_is_not_installed_says_how_to_install_it(monkeypatch, module, make, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'latent-drift\[{extra}\]'"):
        make()


@pytest.mark.parametrize(("wanted", "named"), [("graphite:1", "tensorboard:DIR"), ("prometheus:http", "port number"), ("", "tensorboard:DIR")])
def test_an_export_that_does_not_exist_is_refused_with_those_that_do(wanted, named):
    with pytest.raises(UsageError, match=named):
        exporter_for(wanted)
