"""A script that dies of a number: the first cause is what made it, or else the line it died at. One that dies of something else has none."""

import subprocess
import sys
import textwrap

import pytest

from instrument.locate.death import is_numerical

SCRIPTS = {
    "a logarithm of Python": ("import math, torch\nloss = torch.ones(())\nfor step in range(3):\n    bits = math.log(1.0 - step)  # HERE\n", 1),
    "an overflow of Python": ("import math, torch\nx = torch.full((), 800.0)\nprint(math.exp(x.item()))  # HERE\n", 1),
    "a singular system of numpy": ("import numpy as np, torch\na = np.ones((2, 2))\nx = torch.from_numpy(np.linalg.solve(a, a[0]))  # HERE\n", 1),
    "what a guard saw before": (
        "import torch\nr = torch.tensor([1.0, 0.0])\nz = (r - r) / r  # HERE\nw = torch.linalg.lstsq(torch.ones(2, 2) * z, z[:, None]).solution\n",
        1,
    ),
    "a scale that a network made negative": (
        "import torch\nfrom torch.distributions import Normal\ntorch.manual_seed(0)\nnet = torch.nn.Linear(1, 1)\nnet.bias.data.fill_(-9.0)\n"
        "d = Normal(torch.zeros(1), net(torch.ones(1)), validate_args=True)  # HERE\n",
        1,
    ),
    "a mistake that is none of numbers": ("import torch\nlog = torch.log(torch.zeros(3))\n{}['key']\n", 0),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_line_is_named(name, tmp_path):
    text, named = SCRIPTS[name]
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    plain = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert plain.returncode != 0, "negative control: it dies plain"
    ended = subprocess.run([sys.executable, "-m", "instrument", "run", str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == plain.returncode
    assert plain.stderr.splitlines()[-1] in ended.stderr, "the script's own exception"
    line = next((i for i, source in enumerate(text.splitlines(), start=1) if "# HERE" in source), None)
    assert (f"first cause: script.py:{line} " in ended.stderr) == bool(named), ended.stderr
    assert named or "first cause" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OverflowError("math range error"), True),
        (ZeroDivisionError("float division by zero"), True),
        (ValueError("cannot convert float NaN to integer"), True),
        (ValueError("expected sequence of length 3"), False),
        (ValueError("Expected parameter scale of distribution Normal to satisfy the constraint GreaterThan(lower_bound=0.0), but found"), True),
        (ValueError("Expected value argument to be within the support (IntegerGreaterThan(lower_bound=0))"), True),
        (
            RuntimeError("linalg.inv: The diagonal element 1 is zero, the inversion could not be completed because the input matrix is singular."),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (KeyError("nan"), False),
        (FileNotFoundError("inference.csv"), False),
    ],
    ids=str,
)
def test_which_exceptions_are_about_numbers(error, expected):
    assert is_numerical(error) is expected
