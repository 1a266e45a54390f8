"""`sample`, `classify` and `evaluate` on models that were trained a little."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latent_drift.models.log_data import LogDataset
from latent_drift.training.classification import ROWS, LineClassifier
from latent_drift.training.run import TrainingRun
from latent_drift.training.run_folder import RunFolder
from latent_drift.training.settings import GivenSettings
from latent_drift.training.tasks import TASKS
from latent_drift.training.trained_model import load_trained
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def _trained(where: Path, kind: str, given: GivenSettings) -> Path:
    from latent_drift.config import load

    where.mkdir()
    TrainingRun(TASKS[kind].settings(given), load("1.0.0"), CPU).train(RunFolder(where))
    return where


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier at its own sizes, trained until it knows the words."""
    return _trained(tmp_path_factory.mktemp("classifier") / "run", "raccoon", GivenSettings({}, steps=150, batch_size=64))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny latent ODE that has seen two steps."""
    sizes = {"latent_size": 4, "hidden_size": 8, "embed_size": 4, "num_slices": 4}
    return _trained(tmp_path_factory.mktemp("ode") / "run", "ode", GivenSettings(sizes, steps=2, batch_size=4, data="synthetic:samples=40"))


LINES = [
    (b"ERROR: disk full", "ERROR"),
    (b"2026-10-16 23:04:01,123 error db.pool: no connection", "ERROR"),
    (b"Oct 16 23:04:01 host sshd[12]: Exception in thread main\r", "ERROR"),
    (b"[warn] slow \xff\xfe query", "WARNING"),
    (b"", "-"),
    (b"  \t \r", "-"),
    (b"----", "-"),
    (b"INFO " + b"x" * 300_000, "INFO"),
    ("Début: é中".encode(), None),
    (b"debug \x1b[31mred\x07", "DEBUG"),
    (b"retry 3 of 5", "WARNING"),
]


def test_lines_of_a_real_file_have_their_class(run: Run, classifier: Path, project: Path) -> None:
    (project / "app.log").write_bytes(b"\n".join(line for line, _ in LINES))  # the last line has no end
    outcome = run("classify", str(classifier), "app.log")
    assert outcome.status == 0
    rows = [line.split("\t", 2) for line in outcome.out.split("\n")[:-1]]
    assert len(rows) == len(LINES)  # one a line, in order, blank ones included
    for (category, probability, _), (line, expected) in zip(rows, LINES, strict=True):
        if expected is not None:
            assert category == expected, line[:60]
        assert (float(probability) == 0.0) == (category == "-")
    assert rows[0][2] == "ERROR: disk full"
    assert rows[3][2] == "[warn] slow \ufffd\ufffd query"
    assert rows[9][2] == "debug \\x1b[31mred\\x07"  # nothing that moves the reader's cursor
    assert len(rows[7][2]) == 65_536


def test_json_has_what_text_has(run: Run, classifier: Path, project: Path) -> None:
    (project / "app.log").write_bytes(b"\n".join(line for line, _ in LINES) + b"\n")
    rows = [json.loads(line) for line in run("classify", str(classifier), "app.log", "--json").out.splitlines()]
    text = [line.split("\t") for line in run("classify", str(classifier), "app.log").out.split("\n")[:-1]]
    assert [row["line"] for row in rows] == list(range(1, len(LINES) + 1))
    assert [row["class"] or "-" for row in rows] == [row[0] for row in text]
    assert [f"{row['probability']:.3f}" for row in rows] == [row[1] for row in text]
    assert rows[9]["text"] == "debug \x1b[31mred\x07"


def test_counts_and_only(run: Run, classifier: Path, project: Path) -> None:
    (project / "app.log").write_text("error a\ninfo b\n\nERROR c\n")
    assert run("classify", str(classifier), "app.log", "--counts").out == "ERROR\t2\nWARNING\t0\nINFO\t1\nDEBUG\t0\n-\t1\n"
    assert json.loads(run("classify", str(classifier), "app.log", "--counts", "--json").out)["ERROR"] == 2
    shown = run("classify", str(classifier), "app.log", "--only", "error").out.splitlines()
    assert [line.split("\t")[2] for line in shown] == ["error a", "ERROR c"]
    assert run("classify", str(classifier), "app.log", "--only", "info", "--only", "-").out.count("\n") == 2


def test_a_line_s_figures_do_not_depend_on_its_neighbours(classifier: Path) -> None:
    classify = LineClassifier(load_trained(classifier, "raccoon", CPU, "checkpoint").model, CPU)  # type: ignore[arg-type]
    lines = [f"{word} number {i}" for i, word in enumerate(("error", "info", "warn", "status", "debug") * 120)]
    together = list(classify(lines))
    assert len(lines) > ROWS
    for size in (1, 7):
        apart = [found for first in range(0, len(lines), size) for found in classify(lines[first : first + size])]
        assert [found.category for found in apart] == [found.category for found in together]
        assert [found.probability for found in apart] == pytest.approx([found.probability for found in together], abs=1e-13)


def test_whole_lines_keep_their_stamp(run: Run, classifier: Path, project: Path) -> None:
    (project / "app.log").write_text("2026-10-16 23:04:01 ERROR x\n")
    assert run("classify", str(classifier), "app.log").out.startswith("ERROR\t")
    stripped, whole = (run("classify", str(classifier), "app.log", *more).out for more in ((), ("--whole",)))
    assert stripped != whole


def test_a_stream_is_classified_line_by_line(classifier: Path, project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latent_drift", "classify", str(classifier), "-", "--config", "checkpoint"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    for sent, category in ((b"error one\n", b"ERROR"), (b"info two\r\n", b"INFO"), (b"\n", b"-")):
        process.stdin.write(sent)
        assert select.select([process.stdout], [], [], 120)[0], "no answer to a line before the next one is written"
        answer = process.stdout.read(4096)
        assert answer is not None
        assert answer.split(b"\t")[0] == category
        assert answer.count(b"\n") == 1
    process.stdin.write(b"debug without an end")
    out, err = process.communicate(timeout=120)
    assert out.startswith(b"DEBUG\t")
    assert (process.returncode, err) == (0, b"")


def test_a_reader_that_goes_away_ends_the_classifier_quietly(classifier: Path, project: Path) -> None:
    (project / "long.log").write_text("error\n" * 20_000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m latent_drift classify {classifier} long.log | head -2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment, cwd=project)
    assert done.stdout.count("\n") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "CLASSIFIER", "nowhere.log"), "nowhere.log: cannot be read: No such file or directory; give a log file, or -"),
        (("classify", "CLASSIFIER", "."), ".: is a folder; give a log file"),
        (("classify", "CLASSIFIER", "a.log", "--only", "FATAL"), "--only FATAL: the classes are ERROR, WARNING, INFO, DEBUG"),
        (("classify", "SEQUENCES", "a.log"), "holds the model 'ode', 'raccoon' is needed; take a checkpoint of `latent-drift train raccoon`"),
        (("classify", "a.log"), "a.log: is no checkpoint of latent-drift"),
        (("sample", "CLASSIFIER"), "holds the model 'raccoon', 'ode' is needed"),
        (("sample", "nowhere"), "nowhere: there is no such checkpoint"),
        (("evaluate", "."), ".: is a folder without a checkpoint.pt"),
        (("evaluate", "CLASSIFIER", "--data", "synthetic:n=3"), "--data synthetic:n=3: 'n' is no argument of the synthetic data"),
        (("evaluate", "CLASSIFIER", "--data", "synthetic:samples=0"), "--data has no items"),
        (("evaluate", "CLASSIFIER", "--config", "0.9.0"), "asks for other numerics than the checkpoint was made with"),
        (("evaluate", "CLASSIFIER", "--device", "abacus"), "--device must be cpu, cuda, cuda:N or mps; got 'abacus'"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    run: Run, classifier: Path, sequences: Path, project: Path, arguments: tuple[str, ...], message: str
) -> None:
    (project / "a.log").write_text("error\n")
    named = {"CLASSIFIER": str(classifier), "SEQUENCES": str(sequences)}
    outcome = run(*(named.get(argument, argument) for argument in arguments))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_evaluation_is_of_held_out_data(run: Run, classifier: Path) -> None:
    figures = json.loads(run("evaluate", str(classifier), "--json").out)
    trained = load_trained(classifier, "raccoon", CPU, "checkpoint")
    tokens, labels = LogDataset(4000, seed=2**40).batch(range(4000))
    with torch.no_grad():
        logits = trained.model.predict_logits(tokens)  # type: ignore[operator]
    assert figures["accuracy"] == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    assert figures["accuracy"] > 0.9
    assert figures["cross_entropy"] == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item())
    assert sum(sum(row.values()) for row in figures["confusion"].values()) == figures["items"] == 4000
    assert figures["recall"]["INFO"] == pytest.approx(((logits.argmax(-1) == 2) & (labels == 2)).sum().item() / (labels == 2).sum().item())
    text = run("evaluate", str(classifier), "--data", "synthetic:samples=50,seed=3,drift=0").out
    assert "on 50 messages" in text
    assert "true \\ predicted" in text


def test_evaluation_of_a_file_of_labelled_lines(run: Run, classifier: Path, project: Path) -> None:
    (project / "mine.tsv").write_text("ERROR\t2026-10-16 10:00:00 error x\nINFO\tinfo y\nDEBUG\terror z\n")
    figures = json.loads(run("evaluate", str(classifier), "--data", "mine.tsv", "--json").out)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["recall"] == {"ERROR": 1.0, "WARNING": None, "INFO": 1.0, "DEBUG": 0.0}


def test_samples_are_lines_decided_by_the_seed(run: Run, sequences: Path) -> None:
    first, again, other = (run("sample", str(sequences), "-n", "3", "--length", "20", "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other
    assert [len(line) for line in first.splitlines()] == [20] * 3
    assert run("sample", str(sequences), "-n", "0").out == ""
    rows = [json.loads(line) for line in run("sample", str(sequences), "-n", "2", "--json", "--shared").out.splitlines()]
    assert [row["well_formed"] for row in rows] == [False, False]


def test_evaluation_of_sequences_is_of_the_model_s_own_loss(run: Run, sequences: Path) -> None:
    figures = json.loads(run("evaluate", str(sequences), "--data", "synthetic:samples=70,seed=5", "--json").out)
    from latent_drift.models.sequences import SyntheticTargetDataset

    data = SyntheticTargetDataset(70, seed=5)
    model = load_trained(sequences, "ode", CPU, "checkpoint").model
    with torch.no_grad():
        recon = float(model.loss_components(torch.stack([data[i] for i in range(70)]))[0])  # type: ignore[operator]
    assert figures["recon"] == pytest.approx(recon, rel=1e-5)
    assert figures["well_formed"] == 0.0


@pytest.mark.parametrize("stream", ["<&-", ">&-"], ids=["standard-input", "standard-output"])
def test_a_closed_stream_is_no_traceback(classifier: Path, stream: str) -> None:
    command = f"echo ERROR | {sys.executable} -m latent_drift classify {classifier} {stream}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == ""
    assert done.stderr == ("" if ">" in stream else "latent-drift: error: -: standard input is closed; give a log file\n")
    assert done.returncode == (0 if ">" in stream else 2)


def test_many_samples_come_in_portions_of_their_own(sequences: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run("sample", str(sequences), "-n", "7", "--length", "9").out.splitlines()
    monkeypatch.setattr("latent_drift.training.samples._PORTION", 3)
    portions = run("sample", str(sequences), "-n", "7", "--length", "9").out.splitlines()
    assert len(together) == len(portions) == 7
    assert len(set(portions)) > 3  # no portion is drawn again
    assert portions == run("sample", str(sequences), "-n", "7", "--length", "9").out.splitlines()
    assert portions[:3] == run("sample", str(sequences), "-n", "3", "--length", "9").out.splitlines()
    shared = run("sample", str(sequences), "-n", "7", "--length", "9", "--shared").out.splitlines()
    monkeypatch.setattr("latent_drift.training.samples._PORTION", 512)
    assert shared == run("sample", str(sequences), "-n", "7", "--length", "9", "--shared").out.splitlines()  # one z_0 for all, however many
