"""Runs rules over one file: text in, diagnostics with positions and ready text changes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from patches.edits import Splice, Unfixable, apply_fixes, splices
from patches.findings import FINDINGS, FixSafety
from patches.rules.base import AbstractRule, Hit
from patches.settings import Settings
from patches.source import Source

IGNORE_MARK = "stability:"
"""What an ignore comment holds; a file with one is read although no rule has anything to look for in it."""
_WORD = re.compile(r"\w+")
_PASSES = 10  # nested findings are mended from the outside in, one level a pass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A finding at a place. Lines and columns count from 1; `splices` is the fix, empty when there is none to write.

    `firing_lines` are the lines at which a run may report this finding: all lines of the expression,
    and those of the operations that the fix cures. `excerpt` is the text of the first line; `cell` is
    the cell of a notebook, in which lines are then counted; `last_resort` marks a bound on whatever a run
    has seen fail, which gives way to a stable form.
    """

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    code: str
    message: str
    safety: FixSafety
    splices: tuple[Splice, ...] = ()
    firing_lines: frozenset[int] = frozenset()
    excerpt: str = ""
    cell: int | None = None
    last_resort: bool = False

    @property
    def name(self) -> str:
        """The finding's name."""
        return FINDINGS[self.code].name


def relevant(text: str, rules: Iterable[AbstractRule], settings: Settings) -> list[AbstractRule]:
    """The rules that have anything to look for in this text: the filter that most files do not pass."""
    if "torch" not in text:
        return []
    words = frozenset(_WORD.findall(text))
    return [rule for rule in rules if rule.is_relevant(text, words, settings)]


def check(source: Source, rules: Iterable[AbstractRule]) -> list[Diagnostic]:
    """Every finding of these rules in the file, in the order of the source; one per rule and place."""
    found: dict[tuple[int, int, str], Diagnostic] = {}
    for rule in rules:
        for kind in rule.nodes:
            for node in source.by_type.get(kind, ()):
                for hit in rule.check(node, source):
                    diagnostic, span = _located(source, rule, hit)
                    found.setdefault((*span, rule.code), diagnostic)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -key[1], key[2]))]


def _located(source: Source, rule: AbstractRule, hit: Hit) -> tuple[Diagnostic, tuple[int, int]]:
    start, end = source.span(hit.node)
    line, column = source.location(start)
    end_line, end_column = source.location(end)
    safety = hit.safety
    changes: tuple[Splice, ...] = ()
    if hit.edits:
        try:
            changes = tuple(splices(source, hit.edits))
        except Unfixable:
            safety = "display"
    lines = set(range(line, end_line + 1))
    for node in hit.also:
        first, last = (source.location(offset)[0] for offset in source.span(node))
        lines.update(range(first, last + 1))
    return Diagnostic(
        *(source.path, line, column, end_line, end_column, rule.code, hit.message, safety, changes, frozenset(lines), source.line(line)),
        last_resort=hit.last_resort,
    ), (
        start,
        end,
    )


Wanted = Callable[[Source, Sequence[Diagnostic]], Sequence[Diagnostic]]
"""Chooses the findings of a file that count: suppressions, baselines, lines that fired."""


def is_writable(diagnostic: Diagnostic, unsafe: bool) -> bool:
    """Whether a fix may be written: a safe one always, an unsafe one when asked for, one for display never."""
    return bool(diagnostic.splices) and (diagnostic.safety == "safe" or (unsafe and diagnostic.safety == "unsafe"))


@dataclass(frozen=True, slots=True)
class Mended:
    """A text with its fixes applied, those fixes, and the findings that remain in it."""

    text: str
    applied: tuple[Diagnostic, ...]
    remaining: tuple[Diagnostic, ...]


def fix(
    text: str, path: str, rules: Sequence[AbstractRule], settings: Settings, wanted: Wanted | None = None, unsafe: bool | None = None
) -> tuple[str, list[Diagnostic]]:
    """The new text and the fixes applied: `mend` without what remains."""
    mended = mend(text, path, rules, settings, wanted, unsafe)
    return mended.text, list(mended.applied)


def mend(text: str, path: str, rules: Sequence[AbstractRule], settings: Settings, wanted: Wanted | None = None, unsafe: bool | None = None) -> Mended:
    """Applies every writable fix, pass after pass until none is left.

    A fix whose result does not compile is left out; if the rest do not compile together either, the file is left as the pass before made it.
    """
    allowed = settings.unsafe if unsafe is None else unsafe
    applied: list[Diagnostic] = []
    seen = {text}

    def found(text: str) -> Sequence[Diagnostic]:
        active = relevant(text, rules, settings)
        if not active and IGNORE_MARK not in text:
            return ()
        source = Source(text, path, settings)
        diagnostics = check(source, active)
        return diagnostics if wanted is None else wanted(source, diagnostics)

    diagnostics = found(text)
    for _ in range(_PASSES):
        writable = [d for d in diagnostics if is_writable(d, allowed)]
        changed, chosen = apply_fixes(text, [d.splices for d in writable])
        if chosen and not _compiles(changed, text):
            writable = [d for d in writable if _compiles(apply_fixes(text, [d.splices])[0], text)]
            changed, chosen = apply_fixes(text, [d.splices for d in writable])
        if not chosen or changed in seen or not _compiles(changed, text):
            break
        applied.extend(writable[index] for index in chosen)
        text = changed
        seen.add(text)
        diagnostics = found(text)
    return Mended(text, tuple(applied), tuple(diagnostics))


def _compiles(text: str, before: str) -> bool:
    """Whether the new text compiles, or the old one did not either (Python 2 style code is not ours to judge)."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "<patched>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            try:
                compile(before, "<original>", "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                return True
            return False
    return True
