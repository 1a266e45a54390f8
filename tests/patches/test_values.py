"""What is known of a value where it stands: ranges that are proven, kinds, and honest ignorance."""

from __future__ import annotations

import math

import libcst as cst
import pytest

from patches import flow
from patches import matching as m
from patches.source import Source

HEAD = "import math\nimport numpy as np\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\nEPS = 1e-8\n"
INF = math.inf


def _value(body: str) -> m.Value:
    """The value of what the function returns."""
    source = Source(HEAD + "def f(x, y, n: int, z: torch.Tensor):\n" + "".join(f"    {line}\n" for line in body.split("\n")))
    (function,) = (node for node in source.nodes(cst.FunctionDef) if node.name.value == "f")
    return m.value_of(source, flow.returned(source, function)[-1])


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("return torch.tanh(x)", -1, 1),
        ("return 3 * torch.tanh(x) - 1", -4, 2),
        ("return -(z ** 2)", -INF, 0),
        ("return -z.pow(2) / 2", -INF, 0),
        ("return -z * z", -INF, INF),
        ("return -(z * z)", -INF, 0),
        ("return F.log_softmax(x, dim=-1)", -INF, 0),
        ("return -F.softplus(x)", -INF, 0),
        ("return x.clamp(-5, 2)", -5, 2),
        ("return torch.clamp(x, max=2) * 2", -INF, 4),
        ("return x.clamp(min=EPS)", 1e-8, INF),
        ("return z - z.max(dim=1, keepdim=True)[0]", -INF, 0),
        ("top = z.amax(1, keepdim=True)\nreturn z - top", -INF, 0),
        ("return z - z.logsumexp(0)", -INF, 0),
        ("return torch.where(x > 0, torch.sigmoid(x), torch.tanh(x))", -1, 1),
        ("return torch.cat([torch.sigmoid(x), 2 * torch.sigmoid(y)])", 0, 2),
        ("h = torch.tanh(x)\nif n:\n    h = 2 * h\nreturn h", -2, 2),
        ("h = torch.tanh(x)\nfor i in range(n):\n    h = h + 1\nreturn h", -INF, INF),
        ("h = torch.tanh(x)\nh += 1\nreturn h", 0, 2),
        ("return -30 + F.softplus(50 - F.softplus(20 - x))", -30, 20),
        ("a, b = torch.tanh(x).chunk(2, -1)\nreturn b", -1, 1),
        ("return torch.minimum(x, torch.tensor(3.0))", -INF, 3),
        ("return x.exp()", 0, INF),
        ("return x + 1", -INF, INF),
    ],
)
def test_ranges(body, low, high):
    value = _value(body)
    assert value.low == pytest.approx(low, abs=1e-6)
    assert value.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return z", "tensor"),
        ("return torch.exp(x)", "tensor"),
        ("return x", "unknown"),
        ("return n", "integer"),
        ("return np.exp(x)", "numpy"),
        ("return z.numpy()", "numpy"),
        ("return z.item()", "number"),
        ("return math.log(2)", "number"),
        ("return nn.Linear(2, 3)", "module"),
        ("return nn.Linear(2, 3)(x)", "tensor"),
        ("return 2 * z", "tensor"),
        ("return str(x)", "other"),
    ],
)
def test_kinds(body, kind):
    assert _value(body).kind == kind


def test_dtypes_and_origins():
    assert _value("return z.double() * 2").dtype == "float64"
    assert _value("return z.to(torch.float16)").dtype == "float16"
    assert _value("return z.long()").is_integer
    assert _value("return nn.Linear(2, 3)(x) + 1").origin == "network"
    assert _value("return nn.Parameter(x)").origin == "parameter"
    assert _value("return torch.randn(3)").origin == "noise"
    assert _value("return z.detach()").detached


def _definition(body: str) -> str:
    source = Source(HEAD + "def f(x, y, n: int, z: torch.Tensor):\n" + "".join(f"    {line}\n" for line in body.split("\n")))
    (function,) = (node for node in source.nodes(cst.FunctionDef) if node.name.value == "f")
    return source.code(m.definition(source, flow.returned(source, function)[-1]))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = x + 1\nreturn h", "x + 1"),
        ("h = x + 1\nx = 2\nreturn h", "h"),
        ("h = x + 1\nx.add_(1)\nreturn h", "h"),
        ("h = x + 1\nx[0] = 1\nreturn h", "h"),
        ("h = x + 1\nif n:\n    h = y\nreturn h", "h"),
        ("if n:\n    h = x\nelse:\n    h = y\nreturn h", "h"),
        ("if n:\n    h = x\n    return h\nh = y\nreturn h", "y"),
        ("h = x\nh = y + 1\nreturn h", "y + 1"),
        ("for h in x:\n    pass\nreturn h", "h"),
        ("h = x\nh += 1\nreturn h", "h"),
        ("a, h = x, y\nreturn h", "h"),
        ("return x", "x"),
    ],
)
def test_a_name_stands_for_its_definition_only_when_that_is_certain(body, expected):
    assert _definition(body) == expected
