"""`from torch import *` and its like: what they bind, what is known then, and how new code is spelt."""

from __future__ import annotations

import importlib

import pytest

from patches.engine import check, fix
from patches.names import qualified
from patches.rules import RULES
from patches.settings import Settings
from patches.source import Source
from patches.star_imports import EXPORTED

ACTIVE = [rule for rule in RULES if not rule.code.startswith("NS9")]


@pytest.mark.parametrize("module", EXPORTED)
def test_the_table_is_what_torch_exports(module):
    bound: dict[str, object] = {}
    exec(f"from {module} import *", bound)
    owner = importlib.import_module(module)
    missing = [name for name in EXPORTED[module] if name not in bound]
    assert not missing, f"{module} does not export {missing}"
    assert all(bound[name] is getattr(owner, name) for name in EXPORTED[module])
    assert len(set(EXPORTED[module])) == len(EXPORTED[module])


def test_every_function_that_the_rules_know_and_torch_exports_is_in_the_table():
    from patches import operations

    bound: dict[str, object] = {}
    exec("from torch import *\nfrom torch.nn import *\nfrom torch.nn.functional import *", bound)
    wanted = {*operations.MODULES, *operations.MODULES.values(), *operations.ALIASES}
    wanted |= set("exp log log1p expm1 sqrt sum mean var std norm where softmax sigmoid clamp masked_fill prod det inverse max min abs".split())
    listed = {name for names in EXPORTED.values() for name in names}
    assert {name for name in wanted if name in bound} <= listed


def _resolved(text: str, name: str) -> str | None:
    source = Source(text)
    use = next(n for n in reversed(source.by_type[type(source.module.body[-1].body[0].value)]) if n.value == name)
    return qualified(source, use)


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ("from torch import *", "torch.softmax"),
        ("from torch import *\nfrom torch.nn.functional import *", "torch.nn.functional.softmax"),
        ("from torch.nn.functional import *\nfrom torch import *", "torch.softmax"),
        ("from torch import softmax\nfrom torch.nn.functional import *", "torch.nn.functional.softmax"),
        ("from utils import *\nfrom torch import *", "torch.softmax"),
        ("from torch import *\nfrom utils import *", None),  # it may have a softmax of its own
        ("from torch import *\n\n\ndef softmax(x):\n    return x\n", None),
        ("from torch import *\nsoftmax = make()", None),
    ],
)
def test_the_later_one_wins_and_what_is_not_known_stays_unknown(imports, expected):
    assert _resolved(f"{imports}\nsoftmax\n", "softmax") == expected


def test_builtins_that_torch_shadows_are_torch():
    assert _resolved("from torch import *\nsum\n", "sum") == "torch.sum"
    assert _resolved("import torch\nsum\n", "sum") == "builtins.sum"


def test_a_legacy_file_of_stars_is_found_and_mended_in_its_own_spelling():
    text = (
        "from torch import *\nfrom torch.nn import *\nfrom torch.nn.functional import *\n\n\n"
        "class Net(Module):\n    def __init__(self):\n        super().__init__()\n        self.act = Softmax(dim=1)\n\n"
        "    def forward(self, x):\n        return log(self.act(x)), log(1 + exp(x)), log(softmax(x, dim=1)), sqrt((x**2).sum(1))\n"
    )
    assert [d.code for d in check(Source(text), ACTIVE)] == ["NS101", "NS103", "NS101", "NS110"]
    new, applied = fix(text, "net.py", ACTIVE, Settings())
    assert len(applied) == 4
    line = next(line for line in new.splitlines() if "return" in line)
    assert line.strip() == "return log_softmax(x, dim=1), softplus(x), log_softmax(x, dim=1), torch.linalg.vector_norm(x, dim=1)"
    assert "import torch\n" in new
    compile(new, "net.py", "exec", dont_inherit=True)


def test_names_of_numpy_stay_quiet():
    text = "from torch import *\nfrom numpy import *\n\n\ndef f(x):\n    return log(1 + exp(x))\n"
    assert check(Source(text), RULES) == []
