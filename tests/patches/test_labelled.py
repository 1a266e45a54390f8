"""Hazards and near-misses in the style of public code, each with the findings that a careful reader expects on each line.

`labelled/public_style.txt` holds the snippets: `=== name`, then code, in which a comment `# NS201` names what is to be found on its line.
Every rule but the audit's notes is on, those that are off by default too, so a snippet without a comment must stay silent altogether.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from patches.engine import check, fix
from patches.rules import RULES
from patches.settings import Settings
from patches.source import Source

HEAD = """import math
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Categorical, Normal
"""
SHIFT = HEAD.count("\n")
ACTIVE = [rule for rule in RULES if not rule.code.startswith("NS9")]
SNIPPETS = dict(
    part.split("\n", 1) for part in (Path(__file__).parent / "labelled" / "public_style.txt").read_text(encoding="utf-8").split("=== ")[1:]
)
ASIDE = {"NS501", "NS202"}
"""Found in passing wherever a loop has no clipping, or any network output is exponentiated: counted only where they are declared."""


def expected(text: str) -> Counter[tuple[int, str]]:
    return Counter((n, code) for n, line in enumerate(text.splitlines(), 1) for code in re.findall(r"NS\d{3}", line.partition("#")[2]))


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_reader_and_the_rules_agree(name):
    text = SNIPPETS[name]
    found = Counter((d.line - SHIFT, d.code) for d in check(Source(HEAD + text, f"{name}.py", Settings()), ACTIVE))
    wanted = expected(text)
    assert found - Counter({key: n for key, n in found.items() if key[1] in ASIDE and key not in wanted}) == wanted


@pytest.mark.parametrize("name", SNIPPETS)
def test_what_is_written_compiles_and_is_written_once(name):
    text, _ = fix(HEAD + SNIPPETS[name], f"{name}.py", ACTIVE, Settings(unsafe=True))
    compile(text, name, "exec", dont_inherit=True)
    again, applied = fix(text, f"{name}.py", ACTIVE, Settings(unsafe=True))
    assert (again, applied) == (text, [])


def test_the_set_is_of_the_size_it_claims():
    assert sum(1 for text in SNIPPETS.values() if expected(text)) >= 50
    assert sum(1 for text in SNIPPETS.values() if not expected(text)) >= 20
