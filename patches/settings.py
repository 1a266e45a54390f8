"""What a run of `patches` was asked to do: one immutable value, read by rules and runner alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BoundStyle = Literal["returning", "clamp"]
"""`returning`: a bound made of softplus whose gradient never vanishes; `clamp`: the plain clamp."""

AUDIT = "AUDIT"
"""The selection that stands for the founding audit's list."""

AUDIT_CODES = ("NS201", "NS202", "NS301", "NS501", "NS901", "NS902", "NS903", "NS904", "NS905", "NS906")
"""Exactly the audit's own findings: E2 and X1-X4 (NS201, NS301), X5 (NS202), G1-G3 (NS501), the rest as notes (NS9xx)."""

HALF = ("float16", "half", "fp16")


@dataclass(frozen=True, slots=True)
class Settings:
    """Options that change what rules find or write.

    Args:
        dtype: the dtype the code will run in, None when unknown (float16, bfloat16, float32, float64).
        target_torch: the oldest torch the code must run on, as (major, minor); None when unknown.
        bound: how NS201 bounds a log-variance.
        select: codes or prefixes to turn on (`AUDIT`: the founding audit's list); empty means the defaults.
        ignore: codes or prefixes to turn off; wins over `select`.
        unsafe: whether fixes that may change a finite value are offered for writing.
        per_file_ignores: glob pattern to codes or prefixes.
        ruleset: PEP 440 specifier of the rule set; empty means the newest.
        fired: a run has shown that the line fails: what rules only doubt is then a finding, and a plain bound is better than none.
    """

    dtype: str | None = None
    target_torch: tuple[int, int] | None = None
    bound: BoundStyle = "returning"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    unsafe: bool = False
    per_file_ignores: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ruleset: str = ""
    fired: bool = False

    @property
    def audit(self) -> bool:
        """Whether the founding audit's list was asked for: its rules then name what the audit names, bounded or not."""
        return AUDIT in self.select
