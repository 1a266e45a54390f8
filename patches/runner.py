"""Files to results: each file is one of four frozen outcomes, and one file's trouble stops no other."""

from __future__ import annotations

import ast
import gc
import os
import re
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import libcst as cst

from patches import rulesets, selection, suppressions
from patches.engine import IGNORE_MARK, Diagnostic, check, mend, relevant
from patches.firing import FiredOnly, Firing, place
from patches.notebooks import read_notebook
from patches.rules import RULES, AbstractRule
from patches.settings import Settings
from patches.source import Source, read_text

_CHUNK = 16
_DEEP, _DEEP_STACK = 40_000, 512 << 20  # frames, and bytes of address space for what of them is in C
_BRACKETS, _BRACKET_DEPTH = re.compile(r"[()\[\]{}]"), 200  # CPython's own limit
_LONG_LINE = 4_000  # characters; a chain of attributes or minus signs that is too deep for a parser is longer
_POOL_FROM = 24  # starting workers costs what a couple of dozen files cost


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read: its findings, and notes on firings that could not be placed."""

    path: str
    diagnostics: tuple[Diagnostic, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Patched:
    """A file whose fixes were worked out: bytes before and after, the fixes applied, the findings that remain."""

    path: str
    before: bytes
    after: bytes
    applied: tuple[Diagnostic, ...]
    remaining: tuple[Diagnostic, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that could not be read or parsed: where and why."""

    path: str
    reason: str
    line: int = 1
    column: int = 1


Outcome = Checked | Patched | Failed


@dataclass(frozen=True, slots=True)
class Job:
    """One file and what to do with it. `firings` restricts it to what fired; None means everything."""

    path: Path
    shown: str
    settings: Settings
    patch: bool = False
    firings: tuple[Firing, ...] | None = None


@cache
def _rules_of(ruleset: str) -> tuple[tuple[AbstractRule, ...], dict[str, bool]]:
    chosen = rulesets.resolve(ruleset)
    return tuple(chosen.choose(RULES)), chosen.defaults


def active_rules(settings: Settings, path: str, everything: bool = False) -> list[AbstractRule]:
    """The rules that are on for a file; `everything` (what fired decides) turns on all but the audit's notes unless codes are selected."""
    rules, defaults = _rules_of(settings.ruleset)
    ignored = selection.ignored_in(path, settings)
    found = []
    for rule in rules:
        default = defaults[rule.code] or (everything and not rule.code.startswith("NS9"))
        if selection.is_on(rule.code, default, settings) and not selection.matches(rule.code, ignored):
            found.append(rule)
    return found


def run(jobs: Sequence[Job], workers: int | None = None, advance: Callable[[], None] | None = None) -> Iterator[Outcome]:
    """The outcome of each job, in their order; a process for each core when there are many."""
    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if count < 2 or len(jobs) < _POOL_FROM:
        for job in jobs:
            yield process(job)
            if advance is not None:
                advance()
        return
    # Trees have no cycles, so counting references frees them; the collector would only walk millions of live nodes (12 % of the time).
    with ProcessPoolExecutor(min(count, len(jobs) // _CHUNK + 1), initializer=gc.disable) as pool:
        for outcome in pool.map(process, jobs, chunksize=_CHUNK):
            yield outcome
            if advance is not None:
                advance()


def process(job: Job) -> Outcome:
    """Reads, checks and, if asked, patches one file in memory. Never raises for the file's own sake."""
    try:
        if job.path.suffix == ".ipynb":
            return _notebook(job)
        text, encoding, mark = read_text(job.path)
    except (OSError, SyntaxError, UnicodeDecodeError, LookupError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Failed(job.shown, f"cannot be read: {reason}")
    outcome = process_text(job, text)
    if isinstance(outcome, tuple):
        changed, applied, remaining, notes = outcome
        return Patched(job.shown, mark + text.encode(encoding), mark + changed.encode(encoding), applied, remaining, notes)
    return outcome


PatchedText = tuple[str, tuple[Diagnostic, ...], tuple[Diagnostic, ...], tuple[str, ...]]


def process_text(job: Job, text: str) -> Checked | Failed | PatchedText:
    """The same for a text: findings, or for a patching job the new text, the applied and the remaining findings, notes."""
    if job.firings is not None and not job.settings.fired:
        job = replace(job, settings=replace(job.settings, fired=True))
    rules = active_rules(job.settings, job.shown, everything=job.firings is not None and not job.settings.select)
    codes = [rule.code for rule in rules]
    located = place(job.firings, text, job.shown) if job.firings is not None else None
    fired = FiredOnly(located, text) if located is not None else None

    def wanted(source: Source, diagnostics: Sequence[Diagnostic]) -> Sequence[Diagnostic]:
        kept, unused = suppressions.suppress(source, diagnostics, codes)
        if fired is not None:
            return fired(source, kept)
        if not selection.matches(suppressions.UNUSED, job.settings.ignore):
            kept = sorted([*kept, *unused], key=lambda d: (d.line, d.column))
        return kept

    looked_at = relevant(text, rules, job.settings) or IGNORE_MARK in text
    depth = _bracket_depth(text)
    suspicious = depth > _BRACKET_DEPTH // 2 or max(map(len, text.splitlines()), default=0) > _LONG_LINE
    refusal = _cpython_refuses(text) if suspicious or not looked_at else None
    if isinstance(refusal, (RecursionError, MemoryError)) or (isinstance(refusal, SyntaxError) and depth > _BRACKET_DEPTH):
        return Failed(job.shown, "is nested too deeply to be analysed")  # LibCST's parser would overflow the stack, and the process with it
    try:
        if not looked_at:
            failed = _syntax_error(refusal, text, job.shown)
            if failed is not None:
                return failed
            notes = _notes(job, located, fired)
            return (text, (), (), notes) if job.patch else Checked(job.shown, (), notes)
        if job.patch:
            mended = mend(text, job.shown, rules, job.settings, wanted)
            return mended.text, mended.applied, mended.remaining, _notes(job, located, fired)
        source = Source(text, job.shown, job.settings)
        diagnostics = tuple(wanted(source, check(source, relevant(text, rules, job.settings))))
        return Checked(job.shown, diagnostics, _notes(job, located, fired))
    except cst.ParserSyntaxError as error:
        return Failed(job.shown, f"does not parse: {error.message.splitlines()[0]}", error.editor_line, error.editor_column)
    except RecursionError:
        return _with_a_deep_stack(job, text) or Failed(job.shown, "is nested too deeply to be analysed")
    except Exception as error:  # a rule met code that nobody thought of: that file is named, the others are done
        return Failed(job.shown, f"a defect of patches, please report it: {type(error).__name__}: {error}")


def _with_a_deep_stack(job: Job, text: str) -> Checked | Failed | PatchedText | None:
    """The same in a thread that may recurse further: a sum of a thousand terms is a tree a thousand levels deep. None if that is not enough."""
    if sys.getrecursionlimit() >= _DEEP:
        return None
    found: list[Checked | Failed | PatchedText] = []
    limit, size = sys.getrecursionlimit(), threading.stack_size(_DEEP_STACK)
    try:
        sys.setrecursionlimit(_DEEP)
        thread = threading.Thread(target=lambda: found.append(process_text(job, text)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
        sys.setrecursionlimit(limit)
    return found[0] if found else None


def _cpython_refuses(text: str) -> Exception | None:
    """What CPython's parser says against the text: the cheap way to know that it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "<checked>", "exec", flags=ast.PyCF_ONLY_AST, dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: null bytes; MemoryError: the parser's own depth
            return error
    return None


def _bracket_depth(text: str) -> int:
    """How deep brackets are nested, those in strings and comments counted too."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth = max(depth + (1 if bracket in "([{" else -1), 0)
        deepest = max(deepest, depth)
    return deepest


def _syntax_error(refusal: Exception | None, text: str, shown: str) -> Failed | None:
    """A file that no rule looks at is still reported if it is not Python."""
    if isinstance(refusal, SyntaxError):
        try:
            cst.parse_module(text)  # it may be newer Python than the interpreter that runs us
        except cst.ParserSyntaxError:
            return Failed(shown, f"does not parse: {refusal.msg}", refusal.lineno or 1, refusal.offset or 1)
        return None
    return Failed(shown, f"does not parse: {refusal}") if refusal is not None else None


def _notes(job: Job, located: object, fired: FiredOnly | None) -> tuple[str, ...]:
    if fired is None or located is None:
        return ()
    notes = list(getattr(located, "notes", ()))
    for line, codes in fired.unmatched():
        notes.append(f"{job.shown}:{line}: {', '.join(sorted(codes))} fired there; no rule knows a fix for this line")
    return tuple(notes)


def _notebook(job: Job) -> Outcome:
    """A notebook is checked and never written."""
    raw = job.path.read_text(encoding="utf-8")
    notebook = read_notebook(raw)
    outcome = process_text(replace(job, patch=False), notebook.text)
    if isinstance(outcome, Checked):
        found = []
        for diagnostic in outcome.diagnostics:
            cell, line = notebook.places[diagnostic.line - 1]
            _, end_line = notebook.places[min(diagnostic.end_line, len(notebook.places)) - 1]
            found.append(
                replace(
                    diagnostic, cell=cell, line=line, end_line=end_line, splices=(), safety="display" if diagnostic.splices else diagnostic.safety
                )
            )
        return Checked(job.shown, tuple(found), outcome.notes)
    if isinstance(outcome, Failed):
        cell, line = notebook.places[min(outcome.line, len(notebook.places)) - 1] if notebook.places else (1, 1)
        return Failed(job.shown, f"cell {cell} {outcome.reason}", line, outcome.column)
    raise AssertionError("a notebook is never patched")


def write(patched: Patched) -> None:
    """Writes the new bytes in one step: a temporary file beside the target, the target's mode, then a rename.

    A symbolic link is kept and the file behind it written. Raises OSError; the old file is then untouched.
    """
    target = Path(patched.path).resolve()
    mode = stat.S_IMODE(target.stat().st_mode)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(patched.after)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
