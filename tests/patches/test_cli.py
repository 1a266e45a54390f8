"""The command line as people and CI call it: exit statuses, formats, diffs that patch and git take, writing, stdin."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from patches import cli, configuration
from patches.errors import PatchesUsageError
from patches.findings import FINDINGS
from patches.rulesets import released

SAFE = "import torch\n\n\ndef f(x):\n    return torch.log(torch.softmax(x, -1))\n"
UNSAFE = "import torch\n\n\ndef g(x, fc):\n    logvar = fc(x)\n    return torch.exp(0.5 * logvar)\n"
CLEAN = "import torch\n\n\ndef h(x):\n    return torch.log_softmax(x, -1)\n"
BROKEN = "import torch\ndef f(:\n"
ROOT = Path(__file__).resolve().parents[2]


class Result:
    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status, self.out, self.err = status, out.decode(), err.decode()


@pytest.fixture
def run(tmp_path, monkeypatch, capfdbinary):
    """Runs the command line in a folder of its own and gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["patches", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as leave:
            status = int(leave.code or 0)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def module(*arguments: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "patches", *arguments], cwd=cwd, env=environment, capture_output=True, timeout=120, check=False, **kwargs
    )


def test_a_code_may_be_asked_for_in_small_letters(run):
    assert run("explain", "ns201").out == run("explain", "NS201").out == run("explain", "exp-logvar").out != ""


def test_the_version_is_that_of_the_newest_rule_set(run):
    result = run("--version")
    assert (result.status, result.out.split()[-1]) == (0, list(released())[-1])


def test_check_exits_0_when_clean_1_with_findings_2_when_it_could_not_run(run, tmp_path):
    write(tmp_path, clean=CLEAN)
    assert run("check", "clean.py").status == 0
    write(tmp_path, safe=SAFE)
    found = run("check", ".")
    assert found.status == 1
    assert "safe.py:5:12: NS101 log-softmax" in found.out
    assert run("check", "missing.py").status == 2
    assert "missing.py does not exist. Give" in run("check", "missing.py").err


def test_a_parse_error_is_reported_and_the_rest_is_done(run, tmp_path):
    write(tmp_path, broken=BROKEN, safe=SAFE, broken_without_torch="def f(:\n")
    result = run("check", ".")
    assert result.status == 1
    assert "NS101" in result.out
    assert "broken.py:2" in result.err
    assert "broken_without_torch.py:1" in result.err
    (tmp_path / "safe.py").unlink()
    assert run("check", ".").status == 2


def test_newer_python_than_our_own_is_no_parse_error(run, tmp_path):
    write(tmp_path, new="def first[T](x: list[T]) -> T:\n    return x[0]\n")
    result = run("check", ".")
    assert result.status == 0
    assert result.err == ""


def test_json_is_a_list_of_objects_with_the_promised_keys(run, tmp_path):
    write(tmp_path, safe=SAFE, unsafe=UNSAFE)
    found = json.loads(run("check", "--output", "json", ".").out)
    assert [(entry["path"], entry["line"], entry["column"], entry["code"], entry["fix"]) for entry in found] == [
        ("safe.py", 5, 12, "NS101", "safe"),
        ("unsafe.py", 6, 12, "NS201", "unsafe"),
    ]
    assert all({"path", "line", "column", "code", "name", "message", "fix"} <= entry.keys() for entry in found)


def test_sarif_is_valid(run, tmp_path):
    """Against the properties of SARIF 2.1.0 that are written here, closed: an unknown or missing property fails."""
    write(tmp_path, **{"a b": SAFE, "broken": BROKEN})
    log = json.loads(run("check", "--output", "sarif", ".").out)
    schema = json.loads((Path(__file__).parent / "sarif_2_1_0_excerpt.json").read_text())
    jsonschema.validate(log, schema, cls=jsonschema.Draft7Validator)
    (result,) = log["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20b.py"
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False
    log["runs"][0]["results"][0]["severity"] = "high"  # the negative control: no property of SARIF
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, schema, cls=jsonschema.Draft7Validator)


def test_github_output_escapes_what_the_runner_would_read(run, tmp_path):
    write(tmp_path, safe=SAFE)
    (line,) = run("check", "--output", "github", ".").out.splitlines()
    assert line.startswith("::warning file=safe.py,line=5,endLine=5,col=12,endColumn=")
    assert "title=NS101 log-softmax::" in line


@pytest.mark.parametrize("tool", [("patch", "-p0", "--binary"), ("git", "apply")])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_diff_is_taken_by_patch_and_by_git(run, tmp_path, tool, ending):
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    (tmp_path / "src" / "deep dir").mkdir(parents=True)
    files = {"src/deep dir/one.py": SAFE, "two.py": UNSAFE.rstrip("\n"), "src/clean.py": CLEAN}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.replace("\n", ending).encode())
    if tool[0] == "git":
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    result = run("diff", "--unsafe", ".")
    assert result.status == 0
    (tmp_path / "fixes.patch").write_bytes(result.out.encode())
    with open(tmp_path / "fixes.patch", "rb") as stream:
        done = subprocess.run(list(tool), cwd=tmp_path, stdin=stream, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    patched = {name: (tmp_path / name).read_bytes() for name in files}
    assert b"log_softmax" in patched["src/deep dir/one.py"]
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.replace("\n", ending).encode())
    run("apply", "--unsafe", ".")
    assert {name: (tmp_path / name).read_bytes() for name in files} == patched


def test_apply_writes_safe_fixes_and_unsafe_ones_only_when_asked(run, tmp_path):
    write(tmp_path, safe=SAFE, unsafe=UNSAFE)
    assert run("apply", ".").status == 0
    assert (tmp_path / "safe.py").read_text() == SAFE.replace("torch.log(torch.softmax(x, -1))", "torch.log_softmax(x, -1)")
    assert (tmp_path / "unsafe.py").read_text() == UNSAFE
    run("apply", "--unsafe", ".")
    assert "softplus" in (tmp_path / "unsafe.py").read_text()


def test_a_second_apply_changes_nothing(run, tmp_path):
    write(tmp_path, safe=SAFE, unsafe=UNSAFE)
    run("apply", "--unsafe", ".")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.glob("*.py")}
    run("apply", "--unsafe", ".")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.glob("*.py")} == before


def test_mode_encoding_mark_line_endings_links_and_comments_survive(run, tmp_path):
    script = tmp_path / "script.py"
    text = "#!/usr/bin/env python\n# -*- coding: latin-1 -*-\nimport torch as th\n\ncaf\xe9 = lambda x: th.log(th.softmax(x, 1))  # d\xe9j\xe0\n"
    script.write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    script.chmod(0o751)
    marked = tmp_path / "marked.py"
    marked.write_bytes(b"\xef\xbb\xbf" + SAFE.encode())
    link = tmp_path / "link.py"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "target.py").write_text(SAFE)
    link.symlink_to(tmp_path / "elsewhere" / "target.py")
    assert run("apply", "script.py", "marked.py", "link.py").status == 0
    assert script.read_bytes() == text.replace("th.log(th.softmax(x, 1))", "th.log_softmax(x, 1)").replace("\n", "\r\n").encode("latin-1")
    assert stat.S_IMODE(script.stat().st_mode) == 0o751
    assert marked.read_bytes().startswith(b"\xef\xbb\xbfimport torch")
    assert b"log_softmax" in marked.read_bytes()
    assert link.is_symlink()
    assert "log_softmax" in (tmp_path / "elsewhere" / "target.py").read_text()
    assert not list(tmp_path.glob(".*.py.*")), "a temporary file was left behind"


def test_what_cannot_be_written_is_said_and_the_rest_is_done(run, tmp_path, monkeypatch):
    write(tmp_path, first=SAFE, second=SAFE)
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "first.py":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    result = run("apply", ".")
    assert result.status == 2
    assert "first.py: not written: Permission denied" in result.err
    assert (tmp_path / "first.py").read_text() == SAFE
    assert "log_softmax" in (tmp_path / "second.py").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.py", "second.py"]


def test_standard_input(tmp_path):
    write(tmp_path, unused=CLEAN)
    checked = module("check", "-", "--stdin-filename", "pkg/model.py", cwd=tmp_path, input=SAFE.encode())
    assert checked.returncode == 1
    assert checked.stdout.decode().startswith("pkg/model.py:5:12: NS101")
    applied = module("apply", "-", cwd=tmp_path, input=SAFE.encode())
    assert applied.stdout.decode() == SAFE.replace("torch.log(torch.softmax(x, -1))", "torch.log_softmax(x, -1)")
    shown = module("diff", "-", "--stdin-filename", "model.py", cwd=tmp_path, input=SAFE.encode())
    assert shown.stdout.startswith(b"--- ./model.py\n+++ ./model.py\n")


def test_the_diff_of_what_fired_shows_unsafe_fixes_and_apply_still_asks_for_the_flag(run, tmp_path):
    write(tmp_path, unsafe=UNSAFE)
    (tmp_path / "out").mkdir()
    event = {"code": "NS201", "file": "unsafe.py", "line": 6, "source": "return torch.exp(0.5 * logvar)", "op": "exp", "count": 1}
    (tmp_path / "out" / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert "softplus" in run("diff", "--from-report", "out", "unsafe.py").out
    assert run("diff", "--from-report", "out", "--no-unsafe", "unsafe.py").out == ""
    assert "softplus" in run("diff", "--from-report", "out").out
    assert "1 unsafe (--unsafe)" in run("apply", "--from-report", "out", "unsafe.py").err
    assert (tmp_path / "unsafe.py").read_text() == UNSAFE
    assert run("diff", "--from-report", "nowhere", "unsafe.py").status == 2


def test_select_and_ignore_by_code_prefix_and_name(run, tmp_path):
    write(tmp_path, both=SAFE + UNSAFE)
    codes = lambda *options: {e["code"] for e in json.loads(run("check", "--output", "json", *options, ".").out)}  # noqa: E731
    assert codes() == {"NS101", "NS201"}
    assert codes("--select", "NS2") == {"NS201"}
    assert codes("--select", "log-softmax") == {"NS101"}
    assert codes("--ignore", "NS1") == {"NS201"}
    assert codes("--select", "NS1,NS2", "--ignore", "NS201") == {"NS101"}
    refused = run("check", "--select", "NS222", ".")
    assert refused.status == 2
    assert "NS222" in refused.err


def test_settings_come_from_pyproject_and_options_win(run, tmp_path):
    write(tmp_path, **{"both": SAFE + UNSAFE, "tests/old": SAFE})
    (tmp_path / "pyproject.toml").write_text(
        '[tool.latent-drift.patches]\nignore = ["NS201"]\nbound = "clamp"\nper-file-ignores = { "tests/*" = ["NS101"] }\nexclude = ["skipped"]\n'
    )
    write(tmp_path, **{"skipped/bad": SAFE})
    found = json.loads(run("check", "--output", "json", ".").out)
    assert [(e["path"], e["code"]) for e in found] == [("both.py", "NS101")]
    assert "clamp(-30, 20)" in run("diff", "--unsafe", "--ignore", "NS101", ".").out
    assert "softplus" in run("diff", "--unsafe", "--ignore", "NS101", "--bound", "returning", ".").out


def test_every_wrong_setting_is_named_at_once():
    table = {"selekt": ["NS1"], "dtype": "float12", "bound": "hard", "ignore": ["NS999"], "target-torch": "new"}
    with pytest.raises(PatchesUsageError) as error:
        configuration.configure(table, None, {})
    message = str(error.value)
    for part in ("selekt", "did you mean 'select'", "float12", "hard", "NS999", "'new'"):
        assert part in message


def test_an_ignore_silences_its_line_and_an_idle_one_is_a_finding(run, tmp_path):
    write(
        tmp_path,
        a=SAFE.replace("-1))\n", "-1))  # stability: ignore[NS101] measured\n"),
        b=CLEAN.replace("-1)\n", "-1)  # stability: ignore[NS101] long gone\n"),
        c='import torch\nTEXT = "# stability: ignore[NS101]"\n',
        d=CLEAN.replace("-1)\n", "-1)  # stability: ignore[NS501] off in this run\n"),
    )
    found = json.loads(run("check", "--output", "json", ".").out)
    assert [(e["path"], e["code"], e["line"]) for e in found] == [("b.py", "NS001", 5)]
    run("apply", ".")
    assert (tmp_path / "b.py").read_text() == CLEAN
    assert "ignore[NS101]" in (tmp_path / "a.py").read_text()
    assert run("check", ".").status == 0


def test_a_baseline_hides_what_was_there_and_nothing_new(run, tmp_path):
    write(tmp_path, old=SAFE)
    assert run("check", "--write-baseline", "baseline.json", ".").status == 0
    assert run("check", "--baseline", "baseline.json", ".").status == 0
    write(tmp_path, old="# moved down\n" + SAFE)
    assert run("check", "--baseline", "baseline.json", ".").status == 0
    write(tmp_path, old=SAFE + SAFE.replace("def f", "def again"))
    assert run("check", "--baseline", "baseline.json", ".").status == 1
    assert run("check", "--baseline", "nowhere.json", ".").status == 2


def test_gitignore_is_respected_and_named_files_are_taken(run, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("build/\n*_gen.py\n!kept_gen.py\n")
    write(tmp_path, **{"build/a": SAFE, "b_gen": SAFE, "kept_gen": SAFE, "sub/c": SAFE, ".venv/d": SAFE})
    (tmp_path / "sub" / ".gitignore").write_text("c.py\n")
    assert [e["path"] for e in json.loads(run("check", "--output", "json", ".").out)] == ["kept_gen.py"]
    assert run("check", "b_gen.py").status == 1


def test_notebooks_are_read_and_never_written(run, tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# title"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import torch\n", "!ls"]},
        {"cell_type": "code", "source": "x = torch.ones(3)\ny = torch.log(torch.softmax(x, -1))"},
        {"cell_type": "code", "source": "%%bash\nls {"},
    ]
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    before = notebook.read_bytes()
    result = run("check", ".")
    assert "n.ipynb:cell 3:2:5: NS101" in result.out
    run("apply", ".")
    assert notebook.read_bytes() == before


def test_a_pinned_rule_set_is_found_and_an_impossible_pin_refused(run, tmp_path):
    write(tmp_path, safe=SAFE)
    assert run("check", "--ruleset", "~=1.0", ".").status == 1
    assert run("check", "--ruleset", "1.0.0", ".").status == 1
    refused = run("check", "--ruleset", ">=7", ".")
    assert refused.status == 2
    assert "released: 1.0.0" in refused.err


def test_dtype_and_bound_reach_the_fix(run, tmp_path):
    write(tmp_path, unsafe=UNSAFE)
    assert "logvar.clamp(-10, 10)" in run("diff", "--unsafe", "--bound", "clamp", "--dtype", "float16", ".").out
    assert "logvar.clamp(-30, 20)" in run("diff", "--unsafe", "--bound", "clamp", ".").out
    assert run("diff", "--dtype", "float64", "--unsafe", ".").out == ""


def test_a_defect_of_a_rule_is_reported_for_its_file_and_stops_no_other(run, tmp_path, monkeypatch):
    from patches.rules.log_softmax import LogSoftmax

    original = LogSoftmax.check

    def fail(self, node, source):
        if source.path == "bad.py":
            raise LookupError("nothing here")
        return original(self, node, source)

    monkeypatch.setattr(LogSoftmax, "check", fail)
    write(tmp_path, bad=SAFE, good=SAFE)
    result = run("check", ".")
    assert result.status == 1
    assert "good.py:5:12: NS101" in result.out
    assert "bad.py:1:1: a defect of patches, please report it: LookupError: nothing here" in result.err


def test_many_files_go_through_the_pool_in_order(run, tmp_path):
    write(tmp_path, **{f"m{i:03d}": SAFE for i in range(60)})
    found = json.loads(run("check", "--output", "json", ".").out)
    assert [e["path"] for e in found] == [f"m{i:03d}.py" for i in range(60)]


def test_explain_prints_the_page_and_the_nearest_code_for_a_wrong_one(run):
    page = run("explain", "exp-logvar").out
    assert page.startswith("NS201 exp-logvar")
    assert "Why it is bad:" in page
    assert "run time only" in run("explain", "NS506").out
    wrong = run("explain", "exp-logvr")
    assert wrong.status == 2
    assert "exp-logvar" in wrong.err


def test_list_names_every_finding_and_loads_neither_libcst_nor_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['patches', 'list']\ntry:\n    runpy.run_module('patches', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "sys.stderr.write(','.join(m for m in ('libcst', 'torch', 'rich', 'pathspec', 'patches.rules') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert all(found in done.stdout for found in FINDINGS)


def test_the_pre_commit_hook_file_names_commands_that_exist():
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    entries = [line.split(":", 1)[1].split() for line in text.splitlines() if line.strip().startswith("entry:")]
    assert entries == [["python", "-m", "patches", "check"], ["python", "-m", "patches", "apply"]]
