"""What a rule is: a code, what it looks at, and what it makes of one node."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import libcst as cst

from patches.edits import AddImport, Edit, Replace
from patches.findings import FINDINGS, Finding, FixSafety
from patches.settings import Settings
from patches.source import Source


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One finding in a file, before it has a position.

    `edits` is the fix, empty when there is none here. `safety` says how far this fix may be trusted:
    a rule may be safe in one form and unsafe or display-only in another. `also` names nodes besides
    `node` whose firing at run time means this finding (the `exp` that a bound on a log-variance cures);
    `last_resort` says that it only bounds what a run has seen fail.
    """

    node: cst.CSTNode
    message: str
    edits: tuple[Edit, ...] = ()
    safety: FixSafety = "display"
    also: tuple[cst.CSTNode, ...] = ()
    last_resort: bool = False


class AbstractRule(ABC):
    """A rule. Its docstring is its page: What it finds, Why it is bad, Example, Use instead, Fix safety, References.

    Class attributes:
        code: the finding's code in `patches.findings`.
        triggers: a file is looked at only if it holds one of these strings,
        words: or one of these as a whole word (`exp`, which `expand` is not),
        requires: and a match of each of these regular expressions.
        nodes: the node types `check` is called with.
        revision: raised when a change of the rule changes what it reports; a pinned rule set keeps the old one.
    """

    code: ClassVar[str]
    triggers: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    nodes: ClassVar[tuple[type[cst.CSTNode], ...]]
    revision: ClassVar[int] = 1

    @property
    def finding(self) -> Finding:
        """The catalogue's entry."""
        return FINDINGS[self.code]

    def is_relevant(self, text: str, words: Set[str], settings: Settings) -> bool:
        """Whether a file with this text, whose words these are, can have a finding: the filter before parsing."""
        if words.isdisjoint(self.words) and not any(trigger in text for trigger in self.triggers):
            return False
        return all(_compiled(pattern).search(text) is not None for pattern in self.requires)

    @abstractmethod
    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        """The hits at `node`; nothing whenever the rule is not sure."""

    def hit(
        self,
        node: cst.CSTNode,
        *edits: Edit,
        message: str | None = None,
        safety: FixSafety | None = None,
        also: tuple[cst.CSTNode, ...] = (),
        last_resort: bool = False,
    ) -> Hit:
        """A hit with the catalogue's words and safety unless others are given."""
        finding = self.finding
        return Hit(node, message or f"{finding.summary}; {finding.remedy}", edits, safety or (finding.fix if edits else "display"), also, last_resort)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def replace_with(node: cst.CSTNode, text: str, *imports: str | None) -> tuple[Edit, ...]:
    """The edits that put `text` in place of `node` and add the imports it needs (None: none)."""
    return (Replace(node, text), *(AddImport(line) for line in imports if line is not None))
