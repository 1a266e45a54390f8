"""A warning that torch gives inside a guarded operation is the script's, as it is without the guards."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import instrument

SCRIPT = """\
import warnings

import torch
import torch.nn.functional as F

one = torch.ones(1)
one.var()
for _ in range(2):
    one.std()
F.softmax(torch.ones(2, 2))
F.mse_loss(torch.ones(2), torch.ones(2, 1))
F.kl_div(torch.ones(2), torch.ones(2))


def far_off():
    warnings.warn("three frames up", stacklevel=3)


class Far(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        far_off()
        return gradient


def step(x):
    Far.apply(x).exp().sum().backward()


x = torch.ones(2, requires_grad=True)
step(x)
step(x)
net = torch.nn.Linear(2, 2)
net.register_full_backward_hook(lambda module, grad_input, grad_output: None)  # its warning names the caller of backward
for _ in range(2):
    net(torch.ones(1, 2)).exp().sum().backward()
net(torch.ones(1, 2)).exp().sum().backward()
"""


def _shown(arguments: list[str], script: Path) -> list[str]:
    finished = subprocess.run([sys.executable, *arguments, script.name], cwd=script.parent, capture_output=True, text=True, check=True)
    return finished.stderr.splitlines()


def test_what_is_shown_is_what_python_shows(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    plain = _shown([], script)
    guarded = _shown(["-m", "instrument", "run", "--profile", "guard", "--quiet"], script)
    assert sum("Warning" in line for line in plain) >= 8
    assert guarded == plain


def _degenerate() -> None:
    torch.ones(1).var()


def _told() -> list[tuple[str, int]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _degenerate()
    return [(item.filename, item.lineno) for item in caught]


def test_a_recorded_warning_names_the_line() -> None:
    with instrument.stable(profile="guard"):
        guarded = _told()
    assert guarded == _told() == [(__file__, _degenerate.__code__.co_firstlineno + 1)]


def test_each_line_warns_once() -> None:
    namespace: dict[str, object] = {"torch": torch, "__name__": "somebodys_own"}
    text = compile("for _ in range(3):\n    torch.ones(1).var()\n    torch.ones(1).var()\n", "somebodys_own.py", "exec")
    with instrument.stable(profile="guard"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        exec(text, namespace)
    assert [item.lineno for item in caught] == [2, 3]


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_filters_for_the_scripts_module_apply(action: str) -> None:
    with instrument.stable(profile="guard"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(action, module=__name__.replace(".", r"\."))  # type: ignore[arg-type]
        if action == "error":
            with pytest.raises(UserWarning, match="degrees of freedom"):
                _degenerate()
        else:
            _degenerate()
    assert caught == []


def test_the_display_of_warnings_is_put_back() -> None:
    before = dict(vars(warnings))
    with instrument.stable():
        assert vars(warnings) != before
    assert vars(warnings) == before
