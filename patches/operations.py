"""One normal form for the many spellings of an operation: `torch.exp(x)`, `x.exp()`, `F.softmax(x, -1)`, `self.softmax(x)`.

Syntax and resolved names only. Whether a method's receiver is a tensor is decided in `patches.values`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import libcst as cst

from patches import flow, names
from patches.source import Source

Form = Literal["function", "method", "module"]

_PREFIXES = ("torch.nn.functional.", "torch.special.", "torch.Tensor.", "torch._C._nn.", "torch.functional.", "torch.")
SPECIAL = {"expit": "sigmoid", "logits": "logit"}
_KEPT = ("torch.linalg.", "torch.fft.", "torch.distributions.", "torch.nn.", "torch.optim.", "torch.cuda.", "torch.amp.", "torch.autograd.")

MODULES: dict[str, str] = {
    "Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid", "LogSigmoid": "logsigmoid", "Tanh": "tanh", "ReLU": "relu",
    "ReLU6": "relu6", "Softplus": "softplus", "Hardtanh": "hardtanh", "GELU": "gelu", "ELU": "elu", "SiLU": "silu", "LeakyReLU": "leaky_relu",
    "Identity": "identity", "Dropout": "dropout", "Hardsigmoid": "hardsigmoid", "Softsign": "softsign", "Flatten": "flatten",
}  # fmt: skip
"""torch.nn modules that compute a function of their one input, and that function's name."""

ALIASES = {"clip": "clamp", "absolute": "abs", "negative": "neg", "divide": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub",
           "concat": "cat", "concatenate": "cat", "amax": "amax", "arctanh": "atanh"}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A call of a torch operation, however it is spelt.

    `name` is the canonical name (`exp`, `softmax`, `linalg.norm`, `clamp` for `clip` too); `input` its
    first operand; `rest` the other arguments, positions counted after the input; for a module
    (`self.softmax = nn.Softmax(dim=1)`) `rest` is what its constructor was given.
    """

    name: str
    node: cst.Call
    form: Form
    input: cst.BaseExpression
    rest: tuple[cst.Arg, ...]
    inplace: bool = False

    def argument(self, position: int, *keywords: str) -> cst.BaseExpression | None:
        """The argument by any of its keywords, or by its position after the input (from 0)."""
        for arg in self.rest:
            if arg.keyword is not None and arg.keyword.value in keywords:
                return arg.value
        plain = [arg for arg in self.rest if arg.keyword is None]
        return plain[position].value if 0 <= position < len(plain) else None

    def keyword(self, *keywords: str) -> cst.BaseExpression | None:
        """The argument given by one of these keywords."""
        return self.argument(-1, *keywords)

    @property
    def plain(self) -> bool:
        """Whether there is no argument but the input."""
        return not self.rest


def canonical_name(full: str) -> str | None:
    """`exp` for `torch.exp`, `softmax` for `torch.nn.functional.softmax`, `linalg.norm`; None outside torch."""
    if not full.startswith("torch."):
        return None
    for prefix in _PREFIXES:
        if full.startswith(prefix):
            name = full[len(prefix) :]
            break
    if prefix == "torch." and full.startswith(_KEPT):
        return full[len("torch.") :]
    name = SPECIAL.get(name, name)
    return ALIASES.get(name, name)


def parse(source: Source, node: cst.CSTNode) -> Operation | None:
    """The operation that a call is, by names alone; a method call on anything counts, so check its receiver."""
    if not isinstance(node, cst.Call):
        return None
    memo: dict[cst.CSTNode, Operation | None] = source.memo.setdefault("operations", {})
    if node not in memo:
        memo[node] = _parse(source, node)
    return memo[node]


def _parse(source: Source, node: cst.Call) -> Operation | None:
    if any(arg.star for arg in node.args):
        return None
    full = names.qualified(source, node.func)
    if full is not None:
        canonical = canonical_name(full)
        return _from_function(canonical, node) if canonical is not None else None
    module = module_call(source, node)
    if module is not None:
        return module
    if not isinstance(node.func, cst.Attribute) or isinstance(node.func.value, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString)):
        return None
    name = node.func.attr.value
    inplace = name.endswith("_") and not name.startswith("_")
    bare = name[:-1] if inplace else name
    return Operation(ALIASES.get(bare, bare), node, "method", node.func.value, tuple(node.args), inplace)


def _from_function(name: str, node: cst.Call) -> Operation | None:
    bare, inplace = (name[:-1], True) if name.endswith("_") else (name, False)
    for position, arg in enumerate(node.args):
        is_input = position == 0 and arg.keyword is None
        if is_input or (arg.keyword is not None and arg.keyword.value in ("input", "self", "x", "tensors")):
            rest = tuple(a for a in node.args if a is not arg)
            return Operation(ALIASES.get(bare, bare), node, "function", arg.value, rest, inplace)
    return None


def module_call(source: Source, node: cst.Call) -> Operation | None:
    """The operation of a call of an activation module: `self.act(x)`, `nn.Tanh()(x)`, `act(x)` with `act = nn.Tanh()`."""
    constructor = module_constructor(source, node.func)
    if constructor is None or len(node.args) != 1 or node.args[0].keyword is not None:
        return None
    full = names.qualified(source, constructor.func) or ""
    name = MODULES.get(full.rpartition(".")[2]) if full.startswith("torch.nn.") else None
    if name is None:
        return None
    return Operation(name, node, "module", node.args[0].value, tuple(constructor.args))


def module_constructor(source: Source, node: cst.BaseExpression) -> cst.Call | None:
    """The one call that made the module behind an expression (`self.fc` set once to `nn.Linear(3, 4)`)."""
    if isinstance(node, cst.Call):
        full = names.qualified(source, node.func)
        return node if full is not None and full.startswith("torch.nn.") else None
    if isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        bindings = flow.attribute_values(source, node)
    elif isinstance(node, cst.Name):
        bindings = flow.reaching(source, node) or ()
    else:
        return None
    if len(bindings) == 1 and bindings[0].kind == "assign" and bindings[0].index is None and isinstance(bindings[0].value, cst.Call):
        return module_constructor(source, bindings[0].value)
    return None
