"""`latent-drift config`: what each command shows, writes and answers with its status."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from latent_drift.config import available, explain, load
from latent_drift.config.sources import ENVIRONMENT
from tests.cli.conftest import Run

FIXTURES = Path(__file__).parents[1] / "config" / "fixtures"


def test_list_shows_versions_dates_and_hashes(run: Run) -> None:
    outcome = run("config", "list")
    assert outcome.status == 0
    for line, release in zip(outcome.out.splitlines(), available(), strict=True):
        date = "draft" if release.released is None else release.released.isoformat()
        assert line.split()[:3] == [release.version, date, release.sha256]
    assert [entry["sha256"] for entry in json.loads(run("config", "list", "--json").out)] == [release.sha256 for release in available()]


def test_show_gives_a_file_that_loads_as_the_config(run: Run, project: Path) -> None:
    config = load("1.0.0", profile="guard", gradient={"clip": {"kind": "norm", "max_norm": 0.5}}, anomaly={"allow": ["a.py:3"]})
    arguments = (
        "1.0.0",
        "--profile",
        "guard",
        "--set",
        "gradient.clip.kind=norm",
        "--set",
        "gradient.clip.max_norm=0.5",
        "--set",
        'anomaly.allow=["a.py:3"]',
    )
    text = run("config", "show", *arguments).out
    (project / "shown.toml").write_text(text)
    assert load("shown.toml") == config
    assert text.splitlines()[0] == f"# {config.identity}"
    (project / "shown.json").write_text(run("config", "show", *arguments, "--json").out)
    assert load("shown.json") == config
    assert run("config", "show", *arguments, "--json").out == run("config", "show", *arguments, "--format", "json").out


def test_show_without_a_pin_is_what_the_project_says(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text('[tool.latent-drift]\nstability = "0.9.0"\n')
    assert tomllib.loads(run("config", "show").out)["version"] == "0.9.0"
    monkeypatch.setenv(ENVIRONMENT, "~=1.0")
    assert tomllib.loads(run("config", "show").out)["version"] == "1.0.0"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("gradient.warn_nrm=3.0", "gradient.warn_nrm: unknown key; closest known: gradient.warn_norm"),
        ("gradient.warn_norm=high", "gradient.warn_norm: should be a valid number; got 'high'"),
        ("gradient.warn_norm", "expected PATH=VALUE, got 'gradient.warn_norm'"),
        ("=3", "expected PATH=VALUE"),
    ],
)
def test_a_wrong_set_is_refused(run: Run, assignment: str, message: str) -> None:
    outcome = run("config", "show", "--set", assignment)
    assert outcome.status == 2
    assert message in outcome.err


def test_diff_is_status_1_where_anything_differs_and_0_where_nothing_does(run: Run) -> None:
    outcome = run("config", "diff", "0.9.0", "1.0.0")
    assert outcome.status == 1
    assert "  precision.float16.exp_max: 20.0 -> 11.0859375\n      0.9.0: deprecated: exp(12) is inf in float16 already\n" in outcome.out
    same = run("config", "diff", "1.0.0", "~=1.0")
    assert (same.status, same.out.splitlines()[-1]) == (0, "the values are equal")


def test_diff_as_json_has_every_difference_with_its_note(run: Run) -> None:
    outcome = run("config", "diff", "0.9.0", "1.0.0", "--json", "--profile", "guard")
    assert outcome.status == 1
    found = {entry["path"]: entry for entry in json.loads(outcome.out)["differences"]}
    assert found["precision.float16.mask_value"] == {
        "path": "precision.float16.mask_value",
        "before": -1e9,
        "after": -65504.0,
        "only_in": None,
        "note": "deprecated: -1e9 does not fit float16: filling with it raises, or gives -inf",
    }


def test_diff_takes_files(run: Run, project: Path) -> None:
    (project / "mine.toml").write_text('version = "1.0.0"\n[amp]\ninit_scale = 4.0\n')
    outcome = run("config", "diff", "1.0.0", "mine.toml")
    assert (outcome.status, "  amp.init_scale: 1024.0 -> 4.0" in outcome.out.splitlines()) == (1, True)


def test_explain_says_where_values_come_from(run: Run, project: Path) -> None:
    outcome = run("config", "explain", "--set", "gradient.warn_norm=5.0")
    assert outcome.status == 0
    assert "gradient.warn_norm = 5.0  from argument" in outcome.out.splitlines()
    part = json.loads(run("config", "explain", "1.0.0", "--only", "gradient.clip", "--json").out)
    assert [value["path"] for value in part["values"]] == ["gradient.clip.kind", "gradient.clip.max_norm", "gradient.clip.norm_type"]
    assert part["identity"] == explain("1.0.0").config.identity
    assert run("config", "explain", "--only", "gradent").status == 2


def test_lock_and_check(run: Run, project: Path) -> None:
    assert run("config", "check").status == 2
    locked = run("config", "lock", "~=1.0", "--profile", "guard")
    assert (locked.status, locked.out) == (0, f"stability.lock: {load('1.0.0', profile='guard').identity}\n")
    document = json.loads((project / "stability.lock").read_text())
    assert {"version": "1.0.0", "sha256": load("1.0.0").sha256, "profile": "guard", "overrides": {}}.items() <= document.items()
    assert "torch" in document
    held = run("config", "check")
    assert (held.status, held.out) == (0, "stability.lock: holds (1.0.0, profile guard)\n")

    document["sha256"] = "0" * 64
    (project / "stability.lock").write_text(json.dumps(document))
    broken = run("config", "check")
    assert broken.status == 1
    assert "sha256: config 1.0.0 was locked with 0000" in broken.out
    as_json = run("config", "check", "stability.lock", "--json")
    assert (as_json.status, json.loads(as_json.out)["holds"]) == (1, False)

    (project / "stability.lock").write_text("{}")
    assert run("config", "check").status == 2


def test_lock_writes_where_it_is_told_and_replaces_in_one_step(run: Run, project: Path) -> None:
    target = project / "other.lock"
    target.write_text("old")
    target.chmod(0o640)
    assert run("config", "lock", "1.0.0", "--output", "other.lock").status == 0
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in project.iterdir()) == ["other.lock"]
    assert run("config", "lock", "--output", "gone/other.lock").status == 2


def test_migrate_shows_or_writes_the_current_schema(run: Run, project: Path) -> None:
    old = project / "old.json"
    old.write_text((FIXTURES / "schema_0.json").read_text())
    shown = run("config", "migrate", "old.json")
    assert (shown.status, json.loads(shown.out)["schema_version"]) == (0, 1)
    assert json.loads(old.read_text())["schema_version"] == 0
    assert run("config", "migrate", "old.json", "--write").out == "old.json: schema 0 -> 1\n"
    assert json.loads(old.read_text()) == json.loads(shown.out)
    content = old.read_bytes()
    assert run("config", "migrate", "old.json", "--write").out == "old.json: schema 1 already; not changed\n"
    assert old.read_bytes() == content


def test_migrate_keeps_the_format_and_the_values_of_toml(run: Run, project: Path) -> None:
    old = project / "old.toml"
    old.write_text("schema_version = 0\nGRAD_CLIP_NORM = 3.0\n")
    before = load("old.toml")
    assert run("config", "migrate", "old.toml", "--write").status == 0
    assert tomllib.loads(old.read_text())["schema_version"] == 1
    assert load("old.toml") == before
    assert before.gradient.clip.model_dump() == {"kind": "norm", "max_norm": 3.0, "norm_type": 2.0}


def test_migrate_refuses_what_would_not_load_and_leaves_the_file(run: Run, project: Path) -> None:
    for text in ('{"schema_version": 9, "version": "1.0.0"}', '{"schema_version": 0, "LOG_MAX": "20"}', '{"version": "1.0.0"}'):
        (project / "bad.json").write_text(text)
        assert run("config", "migrate", "bad.json", "--write").status == 2
        assert (project / "bad.json").read_text() == text


def test_schema_is_one_that_a_validator_takes(run: Run, project: Path) -> None:
    schema = json.loads(run("config", "schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"version": "~=1.0", "profile": "guard"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": "~=1.0", "profle": "guard"}, schema)
    assert run("config", "schema", "--output", "stability.schema.json").status == 0
    assert json.loads((project / "stability.schema.json").read_text()) == schema
    assert run("config", "schema", "--json").out == run("config", "schema").out


@pytest.mark.parametrize("command", [["list"], ["show"], ["diff", "1.0.0", "1.0.0"], ["explain"], ["lock"], ["schema"], ["check"]])
def test_every_command_speaks_json(run: Run, command: list[str]) -> None:
    run("config", "lock")
    outcome = run("config", *command, "--json")
    assert outcome.status == 0
    json.loads(outcome.out)
