"""Every rule against its fixtures: text in, text out, twice equals once, and both executed."""

from __future__ import annotations

import re

import pytest
import torch

from patches.engine import check, fix
from patches.findings import FINDINGS
from patches.rules import RULES
from patches.source import Source
from tests.patches.execution import DTYPES, disagreement, grid, mp_gradient, mp_reference, namespace, run
from tests.patches.fixture_files import Fixture, fixtures

POINTS: dict[str, int] = {}


def _rules(code: str) -> list:
    return [rule for rule in RULES if rule.code == code]


def _lines(fixture: Fixture, text: str) -> list[int]:
    source = Source(text, str(fixture.path), fixture.settings)
    return [d.line for d in check(source, _rules(fixture.code)) if d.code == fixture.code]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_has_fixtures_a_page_and_a_catalogue_entry(rule):
    kinds = {f.kind for f in fixtures() if f.code == rule.code}
    assert kinds & {"before", "display"}, f"{rule.code} has nothing that it finds"
    assert "untouched" in kinds, f"{rule.code} has no near-misses"
    assert rule.code in FINDINGS
    page = type(rule).__doc__ or ""
    for heading in ("What it finds:", "Why it is bad:", "Example:", "Use instead:", "Fix safety:", "References:"):
        assert heading in page, f"{rule.code}'s page lacks {heading!r}"


def test_codes_are_distinct_and_in_order():
    keys = [(rule.code, rule.revision) for rule in RULES]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("fixture", fixtures("before"), ids=str)
def test_before_becomes_after(fixture):
    text, applied = fix(fixture.text, str(fixture.path), _rules(fixture.code), fixture.settings)
    assert applied
    assert text == fixture.after


@pytest.mark.parametrize("fixture", fixtures("before"), ids=str)
def test_applying_twice_equals_once(fixture):
    text, applied = fix(fixture.after, str(fixture.path), _rules(fixture.code), fixture.settings)
    assert text == fixture.after
    assert not applied


@pytest.mark.parametrize("fixture", fixtures("untouched"), ids=str)
def test_near_misses_stay_quiet(fixture):
    assert _lines(fixture, fixture.text) == []


@pytest.mark.parametrize("fixture", fixtures("display"), ids=str)
def test_display_findings_are_exactly_the_marked_lines(fixture):
    marked = [n for n, line in enumerate(fixture.text.splitlines(), 1) if re.search(rf"#.*\b{fixture.code}\b", line)]
    assert marked
    assert sorted(_lines(fixture, fixture.text)) == marked
    text, applied = fix(fixture.text, str(fixture.path), _rules(fixture.code), fixture.settings, unsafe=True)
    assert not applied
    assert text == fixture.text


@pytest.mark.parametrize("fixture", fixtures("before"), ids=str)
def test_every_written_fix_is_executed_or_says_why_not(fixture):
    assert fixture.cases or fixture.declaration.get("not_executed"), f"{fixture} declares no case to execute"


def _largest(gradient: torch.Tensor) -> float:
    """The size of the terms a gradient is summed from: the weights (at most 1), or its own largest entry."""
    finite = gradient[gradient.isfinite()]
    return max(1.0, finite.abs().max().item()) if finite.numel() else 1.0


CASES = [
    pytest.param(fixture, case, dtype, id=f"{fixture}-{case['call'][:40]}-{dtype}")
    for fixture in fixtures("before")
    for case in fixture.cases
    for dtype in case.get("dtypes", DTYPES)
]


@pytest.mark.parametrize(("fixture", "case", "dtype_name"), CASES)
def test_before_and_after_agree_when_run(fixture, case, dtype_name):
    dtype = getattr(torch, dtype_name)
    before, after = namespace(fixture.text, f"{fixture}.before"), namespace(fixture.after, f"{fixture}.after")
    max_ulp = case.get("max_ulp", 4)
    for inputs in grid(case):
        rounded = {name: value.to(dtype).double() for name, value in inputs.items()}
        old, new = run(before, case, inputs, dtype), run(after, case, inputs, dtype)
        if case.get("expect", "equal") == "finite":
            assert all(v.isfinite().all() for v in (*new.values, *new.gradients)), f"{fixture} {case['call']} is not finite after the fix"
            continue
        exact = run(before, case, rounded, torch.float64) if dtype is not torch.float64 else None
        for position, (a, b) in enumerate(zip(old.values, new.values, strict=True)):
            reference = mp_reference(case, rounded, a) if position == 0 else None
            if reference is None and exact is not None:
                reference = exact.values[position]
            problem = disagreement(a, b, reference, dtype, max_ulp, floor=case.get("floor", 0.0 if reference is not None else 1.0))
            assert problem is None, f"value {position} {problem}"
        for position, (a, b) in enumerate(zip(old.gradients, new.gradients, strict=True)):
            reference = mp_gradient(case, rounded) if len(old.values) == 1 else None
            if reference is None and exact is not None:
                reference = exact.gradients[position]
            problem = disagreement(a, b, reference, dtype, 4 * max_ulp, floor=_largest(a))
            assert problem is None, f"gradient {position} {problem}"


@pytest.mark.parametrize("fixture", [f for f in fixtures("before") if f.cases], ids=str)
def test_the_fix_cures_what_it_is_for(fixture):
    """The negative control: somewhere on the grid the old form is non-finite (or less exact) and the new one is not."""
    for case in fixture.cases:
        wanted = case.get("cures", "value")
        if wanted == "nothing":
            continue
        before, after = namespace(fixture.text, "before"), namespace(fixture.after, "after")
        cured = False
        for dtype_name in case.get("dtypes", DTYPES):
            dtype = getattr(torch, dtype_name)
            for inputs in grid(case):
                old, new = run(before, case, inputs, dtype), run(after, case, inputs, dtype)
                if wanted == "accuracy":
                    rounded = {name: value.to(dtype).double() for name, value in inputs.items()}
                    reference = mp_reference(case, rounded, old.values[0])
                    if reference is None:
                        reference = run(before, case, rounded, torch.float64).values[0]
                    cured = cured or bool(((new.values[0] - reference).abs() < 0.1 * (old.values[0] - reference).abs()).any())
                else:
                    pairs = zip(getattr(old, f"{wanted}s"), getattr(new, f"{wanted}s"), strict=True)
                    cured = cured or any(bool((~a.isfinite() & b.isfinite()).any()) for a, b in pairs)
        assert cured, f"{fixture} {case['call']}: nothing on the grid shows that the old form was bad ({wanted})"
