"""A script that differentiates nothing: where it ends in NaN the line that made the first is named, and elsewhere nothing is said."""

import pytest

import instrument
from instrument.runner import run_guarded

MIXTURE = """import torch
torch.manual_seed(0)
x = torch.cat([torch.randn(60) * 0.3, torch.randn(60) * 0.3 + 4])
mean = torch.tensor([0.0, 4.0, 90.0])
for step in range(6):
    density = torch.exp(-0.5 * (x[:, None] - mean) ** 2)
    share = density / density.sum(1, keepdim=True)
    mean = (share * x[:, None]).sum(0) / share.sum(0)  # BIRTH
likelihood = density.sum(1).log().mean()
"""
EMISSIONS = """import torch
seen = torch.tensor([0, 1, 2, 0, 1])
emit = torch.tensor([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0]])
for step in range(4):
    share = torch.cumprod(emit[:, seen], dim=1).t()
    share = share.flip(0)[:2] / share[-1].sum() * 1.0  # BIRTH
    emit = torch.stack([share.sum(0) for _ in range(3)], 1)
"""
TABLE = """import torch
ratio = torch.tensor([1.0, 0.0]) / torch.tensor([2.0, 0.0])
mean = ratio.nanmean()
"""
CONSTANT = """import torch
missing = torch.tensor(float("nan"))
"""


def run(tmp_path, text, profile):
    script = tmp_path / "script.py"
    script.write_text(text)
    outcome = run_guarded(str(script), [], instrument.stable(profile=profile))
    assert outcome.status == 0
    return outcome.run


@pytest.mark.parametrize("profile", ["train", "guard", "observe"])
def test_the_line_that_made_the_first_nan_is_named(tmp_path, profile):
    cause = run(tmp_path, MIXTURE, profile).first_cause
    assert (cause.code, cause.line) == ("NS304", 8)


def test_so_it_is_where_all_of_a_table_is_nan(tmp_path):
    cause = run(tmp_path, EMISSIONS, "guard").first_cause
    assert (cause.code, cause.line) == ("NS304", 6)


@pytest.mark.parametrize("text", [TABLE, CONSTANT])
def test_a_hole_in_a_table_or_a_constant_is_no_event(tmp_path, text):
    assert run(tmp_path, text, "guard").events == ()
