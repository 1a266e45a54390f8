"""`# stability: ignore[NS201] reason`: which findings a comment silences, and which comments silence nothing."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

from patches.edits import Splice
from patches.engine import IGNORE_MARK, Diagnostic
from patches.findings import FINDINGS
from patches.selection import matches
from patches.source import Source

UNUSED = "NS001"
_PATTERN = re.compile(r"#\s*stability:\s*ignore\b(?:\[(?P<codes>[^\]]*)\])?")


@dataclass(frozen=True, slots=True)
class Ignore:
    """One ignore comment: its line, its codes (empty: it names none) and where the comment is."""

    line: int
    codes: tuple[str, ...]
    start: int
    end: int


def ignores(source: Source) -> list[Ignore]:
    """The ignore comments of a file (real comments only, not strings that look like one)."""
    if IGNORE_MARK not in source.text:
        return []
    found: list[Ignore] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source.text, newline="").readline):
            match = _PATTERN.search(token.string) if token.type == tokenize.COMMENT else None
            if match is not None:
                codes = tuple(code.strip() for code in (match["codes"] or "").split(",") if code.strip())
                offset = source.line_starts[token.start[0] - 1] + token.start[1]
                found.append(Ignore(token.start[0], codes, offset, offset + len(token.string)))
    except (tokenize.TokenError, SyntaxError):
        pass  # the file parsed; a tokenizer that stops early has reported what came before
    return found


def suppress(source: Source, diagnostics: Sequence[Diagnostic], active: Sequence[str]) -> tuple[list[Diagnostic], list[Diagnostic]]:
    """The findings that no comment silences, and a finding for each comment that silences none.

    A comment counts on any line of the expression it is about. Codes of rules that are not on in this run
    cannot be judged unused; a comment without codes silences nothing, since it would hide what it never saw.
    """
    comments = ignores(source)
    if not comments:
        return list(diagnostics), []
    used: set[tuple[Ignore, str]] = set()
    kept: list[Diagnostic] = []
    for diagnostic in diagnostics:
        silenced = False
        for comment in comments:
            if diagnostic.line <= comment.line <= diagnostic.end_line:
                for code in comment.codes:
                    if matches(diagnostic.code, (code,)):
                        used.add((comment, code))
                        silenced = True
        if not silenced:
            kept.append(diagnostic)
    return kept, [d for comment in comments for d in _unused(source, comment, used, active)]


def _unused(source: Source, comment: Ignore, used: set[tuple[Ignore, str]], active: Sequence[str]) -> list[Diagnostic]:
    if not comment.codes:
        return [_finding(source, comment, "this ignore names no code, so it silences nothing: write ignore[CODE] and the reason", ())]
    idle = []
    for code in comment.codes:
        known = any(matches(candidate, (code,)) for candidate in FINDINGS)
        judged = any(matches(candidate, (code,)) for candidate in active)
        if (comment, code) not in used and (judged or not known):
            idle.append(code)
    if not idle:
        return []
    remaining = [code for code in comment.codes if code not in idle]
    text = source.text
    if remaining:
        whole = text[comment.start : comment.end]
        changes = (Splice(comment.start, comment.end, re.sub(r"\[[^\]]*\]", f"[{', '.join(remaining)}]", whole, count=1)),)
    else:
        start = comment.start
        while start > 0 and text[start - 1] in " \t":
            start -= 1
        line_start = source.line_starts[comment.line - 1]
        end = comment.end
        if start == line_start:  # the comment has the line to itself: the line goes
            end = source.line_starts[comment.line] if comment.line < len(source.line_starts) else len(text)
        changes = (Splice(start, end, ""),)
    return [_finding(source, comment, f"nothing on this line is silenced by ignore[{', '.join(idle)}]: remove it", changes)]


def _finding(source: Source, comment: Ignore, message: str, changes: tuple[Splice, ...]) -> Diagnostic:
    line, column = source.location(comment.start)
    end_line, end_column = source.location(comment.end)
    return Diagnostic(
        source.path,
        line,
        column,
        end_line,
        end_column,
        UNUSED,
        message,
        "safe" if changes else "display",
        changes,
        frozenset({comment.line}),
        source.line(line),
    )
