"""README's benchmark table is the committed results, and what is not reached is shown as such."""

import json

import pytest

from tests.benchmarks import readme
from tests.benchmarks.harness import Row

MACHINE = {"torch": "2.13.0+cpu", "threads": 1, "python": "3.11.7", "processor": "x86_64"}
ROWS = [
    Row("instrument", "small classifier: guard", 1.116, 1.101, 1.144, 21, 1.08, note="plain step 5.4 ms"),
    Row("instrument", "small classifier: set_detect_anomaly", 3.883, 3.838, 4.021, 21),
    Row("latent_drift", "statistic", 14.3, 14.0, 14.9, 15, 12.0, at_least=True),
    Row("patches", "2,000 files", 26.41, 26.0, 27.1, 15, 60.0, unit="s"),
]


def test_readme_agrees_with_the_committed_results():
    results = readme.read_results(readme.RESULTS)
    if not results:
        pytest.skip("no results are committed: python -m tests.benchmarks NAME --json tests/benchmarks/results/NAME.json")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text, readme.table(results)) == text, "python -m tests.benchmarks.readme writes the table"


def test_a_table_says_what_was_measured_and_what_does_not_hold():
    text = readme.table([(MACHINE, ROWS)])
    assert "| small classifier: guard (plain step 5.4 ms) | 1.12 times | 1.10 to 1.14 | at most 1.08 times | **not reached** |" in text
    assert "| small classifier: set_detect_anomaly | 3.88 times | 3.84 to 4.02 |  |  |" in text
    assert "| statistic | 14.3 times | 14.0 to 14.9 | at least 12 times | holds |" in text
    assert "| 2,000 files | 26.4 s | 26.0 to 27.1 | at most 60 s | holds |" in text
    assert "**instrument** (torch 2.13.0+cpu, 1 thread, x86_64; medians of 21 interleaved pairs)" in text
    assert "2 of 3 bars hold. What does not is marked." in text


def test_results_survive_their_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"machine": MACHINE, "rows": [row.as_dict() for row in ROWS]}), encoding="utf-8")
    assert readme.read_results(tmp_path) == [(MACHINE, ROWS)]


def test_only_what_is_between_the_markers_changes():
    text = f"# before\n\n{readme.BEGIN}\n\nold figures\n\n{readme.END}\n\nafter\n"
    once = readme.filled(text, "new figures")
    assert once == f"# before\n\n{readme.BEGIN}\n\nnew figures\n\n{readme.END}\n\nafter\n"
    assert readme.filled(once, "new figures") == once


@pytest.mark.parametrize("text", ["no markers", f"{readme.END}\n{readme.BEGIN}\n", f"{readme.BEGIN}\n{readme.BEGIN}\n{readme.END}\n"])
def test_a_readme_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="once each, in this order"):
        readme.filled(text, "figures")
