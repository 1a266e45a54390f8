"""Names as Python resolves them, and the file's own spelling for new code."""

from __future__ import annotations

import libcst as cst
import pytest

from patches import names
from patches.engine import check, fix
from patches.rules import RULES
from patches.settings import Settings
from patches.source import Source


def _call(text: str) -> tuple[Source, cst.Call]:
    source = Source(text)
    return source, [node for node in source.nodes(cst.Call) if isinstance(node, cst.Call)][-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\ntorch.exp(x)", "torch.exp"),
        ("import torch as th\nth.exp(x)", "torch.exp"),
        ("from torch import exp\nexp(x)", "torch.exp"),
        ("from torch import exp as e\ne(x)", "torch.exp"),
        ("import torch.nn.functional as F\nF.softmax(x)", "torch.nn.functional.softmax"),
        ("from torch.nn import functional as F\nF.softmax(x)", "torch.nn.functional.softmax"),
        ("from torch import nn\nnn.functional.softmax(x)", "torch.nn.functional.softmax"),
        ("import torch.nn\ntorch.nn.Linear(1, 2)", "torch.nn.Linear"),
        ("import torch\nsoftmax = torch.softmax\nsoftmax(x)", "torch.softmax"),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None\ntorch.exp(x)", "torch.exp"),
        ("from math import exp\nexp(x)", "math.exp"),
        ("float(x)", "builtins.float"),
        ("from .ops import exp\nexp(x)", ".ops.exp"),
        ("from torch import exp\ndef exp(x): return x\nexp(x)", None),
        ("import torch\ndef f(torch):\n    torch.exp(x)", None),
        ("try:\n    from torch import exp\nexcept ImportError:\n    from jax.numpy import exp\nexp(x)", None),
        ("x.exp()", None),
    ],
)
def test_qualified_names(text, expected):
    source, call = _call(text)
    assert names.qualified(source, call.func) == expected


@pytest.mark.parametrize(
    ("text", "wanted", "spelling", "needs"),
    [
        ("import torch\nf(x)", "torch.nn.functional.softplus", "torch.nn.functional.softplus", None),
        ("import torch\nimport torch.nn.functional as F\nf(x)", "torch.nn.functional.softplus", "F.softplus", None),
        ("from torch import nn\nf(x)", "torch.nn.functional.softplus", "nn.functional.softplus", None),
        ("from torch.nn.functional import softplus as sp\nf(x)", "torch.nn.functional.softplus", "sp", None),
        ("from torch import log\nf(x)", "torch.log1p", "log1p", "from torch import log1p"),
        ("f(x)", "torch.exp", "torch.exp", "import torch"),
        ("def g():\n    import torch as th\ndef h():\n    f(x)", "torch.exp", "torch.exp", "import torch"),
    ],
)
def test_spelling(text, wanted, spelling, needs):
    source, call = _call(text)
    found = names.spell(source, call, wanted)
    assert (found.text, found.needs_import) == (spelling, needs)


def test_a_file_with_only_from_imports_gets_a_from_import():
    text = '"""Doc."""\nfrom torch import log, exp\n\n\ndef f(x):\n    return log(1 + x)\n'
    new, _ = fix(text, "x.py", RULES, Settings())
    assert new == '"""Doc."""\nfrom torch import log, exp\nfrom torch import log1p\n\n\ndef f(x):\n    return log1p(x)\n'
    compile(new, "x.py", "exec")


def test_the_torch_in_a_string_or_of_another_library_is_no_torch():
    text = "import numpy as torch\n\n\ndef f(x):\n    return torch.log(torch.softmax(x, -1))\n"
    assert check(Source(text), RULES) == []


def test_positions_count_characters_and_survive_tabs_continuations_and_lone_carriage_returns():
    text = "import torch\r\n\r\nü = 1\r\ndef f(x):\r\n\treturn (1 + \\\r\n\t\ttorch.log(torch.softmax(x, -1)))\r\n"
    (found,) = check(Source(text), [rule for rule in RULES if rule.code == "NS101"])
    assert (found.line, found.column) == (6, 3)
    new, _ = fix(text, "x.py", RULES, Settings())
    assert new == text.replace("torch.log(torch.softmax(x, -1))", "torch.log_softmax(x, -1)")


def test_comments_inside_what_is_replaced_are_kept():
    text = "import torch\n\n\ndef f(x):\n    return torch.log(  # one\n        torch.softmax(x, -1)  # two\n    )  # three\n"
    new, _ = fix(text, "x.py", RULES, Settings())
    assert new == "import torch\n\n\ndef f(x):\n    # one\n    # two\n    return torch.log_softmax(x, -1)  # three\n"
