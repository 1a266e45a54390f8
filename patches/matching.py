"""The questions that rules ask of a file. One import serves a rule: everything here takes the Source first.

operation(source, node, "exp", "exp_")   the call as a torch operation, however it is spelt, else None
number(source, node)                     a constant's value, else None
definition(source, node)                 the expression behind a local name, else the node itself
value_of(source, node)                   kind, range, dtype, origin
is_tensor / is_other                     known to be a tensor / known not to be one
same(source, a, b)                       the same expression reading the same values
binary(node, "-")                        (left, right) of an operator, through no parentheses but its own
power_of(source, node, 2)                x of x**2, x.pow(2), x.square(), torch.square(x), x * x
one_plus, one_minus                      x of 1 + x and x + 1; x of 1 - x
operand, argument                        source text to put into a template, parenthesised where needed
rewritten(source, node, {part: text})    the text of a node with parts of it replaced
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import libcst as cst

from patches import flow, operations, values
from patches.constants import number
from patches.edits import AddImport, AddLines, Edit, Replace, Unfixable
from patches.flow import definition
from patches.names import invented, qualified, spell
from patches.operations import Operation
from patches.source import Source
from patches.values import Value, is_other, is_tensor, no_grad_at, value_of

__all__ = [
    "Operation",
    "Value",
    "argument",
    "binary",
    "definition",
    "exp_limit",
    "function_text",
    "imports_torch",
    "is_double_default",
    "is_double_in_sight",
    "is_epsilon_name",
    "is_half_in_sight",
    "is_other",
    "is_pure",
    "is_tensor",
    "log_softmax_in_place_of",
    "may_overflow_exp",
    "negated",
    "negation",
    "no_grad_at",
    "number",
    "one_minus",
    "one_plus",
    "operand",
    "operation",
    "power_of",
    "qualified",
    "reuse",
    "rewritten",
    "same",
    "sibling_call",
    "spell",
    "value_of",
]

_OPERATORS: dict[str, type[cst.BaseBinaryOp]] = {
    "+": cst.Add, "-": cst.Subtract, "*": cst.Multiply, "/": cst.Divide, "**": cst.Power, "@": cst.MatrixMultiply, "//": cst.FloorDivide,
}  # fmt: skip
_ATOMS = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.Integer, cst.Float, cst.List, cst.Tuple, cst.Dict, cst.SimpleString)
_HALF_MARKS = ("autocast", ".half()", "float16", "torch.half", "bfloat16", "fp16", "GradScaler")


def operation(source: Source, node: cst.CSTNode, *wanted: str, result_is_tensor: bool = False) -> Operation | None:
    """The call `node` as a torch operation of one of these canonical names (any, if none are given).

    Set `result_is_tensor` when the place already says so (it is the input of another torch operation):
    then a method that numpy shares (`x.sum()`, `x.var()`) is enough on a receiver of unknown kind.

    A method counts when its receiver is a tensor, or is not known to be anything else in a file that
    imports torch and the method is one that only tensors have (`x.exp()`; not `x.sum()`, `x.clip()`).
    """
    if type(node) is not cst.Call:
        return None
    if wanted and type(node.func) is cst.Attribute:  # cheap refusal before names are resolved
        spellings, by_module = _spellings(wanted)
        if node.func.attr.value not in spellings:
            if not by_module or type(node.func.value) is not cst.Name or node.func.value.value != "self":
                return None
            parsed = operations.parse(source, node)
            return parsed if parsed is not None and parsed.form == "module" and parsed.name in wanted else None
    parsed = operations.parse(source, node)
    if parsed is None or (wanted and parsed.name not in wanted):
        return None
    if parsed.form == "method":
        receiver = value_of(source, parsed.input)
        if receiver.kind != "tensor" and (receiver.kind != "unknown" or not (result_is_tensor or _is_presumed_tensor(source, parsed))):
            return None
    return parsed


@cache
def _spellings(wanted: tuple[str, ...]) -> tuple[frozenset[str], bool]:
    """The attribute names under which these operations are called, and whether an nn module computes one of them."""
    bare = {name.rpartition(".")[2] for name in wanted}
    bare |= {alias for alias, name in (*operations.ALIASES.items(), *operations.SPECIAL.items()) if name in wanted}
    return frozenset(bare | {f"{name}_" for name in bare}), not operations.MODULES.keys().isdisjoint(
        module for module, name in operations.MODULES.items() if name in wanted
    )


def _is_presumed_tensor(source: Source, method: Operation) -> bool:
    if not imports_torch(source):
        return False
    receiver = method.input
    if isinstance(receiver, cst.Name) and receiver.value in ("self", "cls"):
        return False
    if isinstance(receiver, cst.Call):
        full = qualified(source, receiver.func)
        if full is not None and not full.startswith("torch."):
            return False
        if isinstance(receiver.func, cst.Name) and receiver.func.value[:1].isupper():
            return False  # an instance of some class
    name = method.name + ("_" if method.inplace else "")
    return name in values.TENSOR_ONLY_METHODS or method.name in values.TENSOR_ONLY_METHODS or is_tensor(source, receiver)


def imports_torch(source: Source) -> bool:
    """Whether the file imports torch, or something of it, anywhere."""
    memo = source.memo
    if "imports_torch" not in memo:
        memo["imports_torch"] = any(
            b.kind == "import" and (b.target == "torch" or b.target.startswith("torch."))
            for scope in source.scopes.values()
            for bindings in scope.bindings.values()
            for b in bindings
        ) or any(star.startswith("torch") for star in source.star_imports)
    return bool(memo["imports_torch"])


def binary(node: cst.CSTNode, symbol: str) -> tuple[cst.BaseExpression, cst.BaseExpression] | None:
    """Left and right of a binary operation with this operator."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, _OPERATORS[symbol]):
        return node.left, node.right
    return None


def negated(source: Source, node: cst.BaseExpression) -> cst.BaseExpression | None:
    """x of -x, x.neg(), torch.neg(x)."""
    if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Minus):
        return node.expression
    found = operation(source, node, "neg")
    return found.input if found is not None and found.plain else None


def one_plus(source: Source, node: cst.BaseExpression) -> cst.BaseExpression | None:
    """x of 1 + x or x + 1."""
    sides = binary(node, "+")
    if sides is None:
        return None
    left, right = sides
    if number(source, left, defaults=False) == 1:
        return right
    return left if number(source, right, defaults=False) == 1 else None


def one_minus(source: Source, node: cst.BaseExpression) -> cst.BaseExpression | None:
    """x of 1 - x."""
    sides = binary(node, "-")
    return sides[1] if sides is not None and number(source, sides[0], defaults=False) == 1 else None


def power_of(source: Source, node: cst.BaseExpression, exponent: float) -> cst.BaseExpression | None:
    """x of x**exponent, x.pow(exponent), torch.pow; for 2 also x.square() and x * x."""
    sides = binary(node, "**")
    if sides is not None:
        return sides[0] if number(source, sides[1], defaults=False) == exponent else None
    found = operation(source, node, "pow", "square")
    if found is not None:
        if found.name == "square":
            return found.input if exponent == 2 and found.plain else None
        return found.input if number(source, found.argument(0, "exponent"), defaults=False) == exponent else None
    sides = binary(node, "*")
    if exponent == 2 and sides is not None and same(source, *sides) and not _has_call(sides[0]):
        return sides[0]
    return None


def _has_call(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Call) or any(_has_call(child) for child in node.children)


def same(source: Source, left: cst.BaseExpression, right: cst.BaseExpression) -> bool:
    """Whether two expressions are written alike and read the same values (names not rebound between them)."""
    if _bare(source, left) != _bare(source, right):
        return False
    first, last = sorted((left, right), key=source.order.__getitem__)
    return flow.is_stable(source, first, last)


def _bare(source: Source, node: cst.BaseExpression) -> str:
    text = source.code(node).strip()
    while node.lpar and text.startswith("(") and text.endswith(")"):
        return "".join(text[len(node.lpar) : -len(node.rpar)].split())
    return "".join(text.split())


def operand(source: Source, node: cst.BaseExpression) -> str:
    """The text of an expression as an operand or a receiver: in parentheses unless it needs none."""
    text = source.code(node)
    return text if node.lpar or (isinstance(node, _ATOMS) and not isinstance(node, (cst.Integer, cst.Float))) else f"({text})"


def argument(source: Source, node: cst.BaseExpression) -> str:
    """The text of an expression as a call's argument: one pair of its own parentheses is dropped where it can be."""
    text = source.code(node)
    if node.lpar and not isinstance(node, (cst.Tuple, cst.GeneratorExp, cst.NamedExpr, cst.Yield)) and "\n" not in text and "#" not in text:
        return source.code(node.with_changes(lpar=node.lpar[1:], rpar=node.rpar[:-1])).strip()
    return text


def sibling_call(source: Source, call: cst.Call, name: str) -> tuple[cst.Call, str | None]:
    """`call` with its function replaced by another of the same owner, arguments and layout as they stand.

    `F.softmax(x, dim=1)` -> `F.log_softmax(x, dim=1)`, `x.var(0)` -> `x.std(0)`; for a bare `softmax(x)`
    the file's spelling of torch's own `name`. Also returns the import that is needed, if any.
    """
    needs = None
    if isinstance(call.func, cst.Attribute):
        changed: cst.BaseExpression = call.func.with_changes(attr=cst.Name(name))
    else:
        module = (qualified(source, call.func) or "torch.").rpartition(".")[0]
        spelling = spell(source, call, f"{module}.{name}", f"torch.{name}")
        changed, needs = cst.parse_expression(spelling.text), spelling.needs_import
    return call.with_changes(func=changed, lpar=(), rpar=()), needs


def function_text(source: Source, at: cst.CSTNode, function: str, *arguments: str) -> tuple[str, str | None]:
    """A call of a torch function by its full name, as this file spells it, and the import that needs."""
    spelling = spell(source, at, function)
    return f"{spelling.text}({', '.join(arguments)})", spelling.needs_import


def is_double_in_sight(source: Source, node: cst.BaseExpression) -> bool:
    """Whether the expression may be float64: known so, or `--dtype float64`, or the file speaks of it."""
    if source.settings.dtype is not None:
        return source.settings.dtype == "float64"
    return value_of(source, node).dtype == "float64" or any(mark in source.text for mark in (".double()", "float64", "torch.double", "DoubleTensor"))


_PURE_FUNCTIONS = frozenset(
    "view reshape squeeze unsqueeze expand transpose permute flatten contiguous float double half to detach"
    " exp log log1p expm1 sqrt abs tanh sigmoid "
    "softmax log_softmax softplus relu clamp sum mean amax amin max min pow square neg add sub mul div matmul mm bmm einsum cat stack where norm "
    "logsumexp type_as chunk split size cos sin eq ne lt le gt ge bool int long logical_not logical_and logical_or isnan isfinite any"
    " all dim round floor ceil".split()
)


def is_pure(source: Source, node: cst.CSTNode) -> bool:
    """Whether evaluating the expression twice is the same as once: no call but of plain torch functions (dropout and layers are not)."""
    if isinstance(node, (cst.Await, cst.Yield, cst.NamedExpr, cst.Lambda)):
        return False
    if isinstance(node, cst.Call):
        found = operations.parse(source, node)
        if found is None or found.name not in _PURE_FUNCTIONS or found.inplace:
            return False
    return all(is_pure(source, child) for child in node.children)


def reuse(source: Source, expression: cst.BaseExpression, suggestion: str) -> tuple[str, tuple[Edit, ...]]:
    """Text that gives the value of `expression` at a later place, and the edits that make it available.

    A pure expression is written again. Anything else (a layer, dropout) is taken out of its statement
    into a new local name, so that it still runs once.

    Raises:
        Unfixable: the statement is not a plain one, so that nothing can be put before it.
    """
    if is_pure(source, expression):
        return source.code(expression), ()
    statement = source.statement_of(expression)
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1 or not isinstance(statement.body[0], cst.Assign):
        raise Unfixable("the value would be computed twice")
    name = invented(source, expression, suggestion)
    return name, (AddLines(statement, (f"{name} = {argument(source, expression)}",), "before"), Replace(expression, name))


def log_softmax_in_place_of(source: Source, log: cst.Call, softmax: Operation, direct: bool) -> tuple[Edit, ...]:
    """The edits that write the log-softmax of `softmax`'s input in place of the call `log`; `direct` if the one holds the other.

    Raises:
        Unfixable: an nn.Softmax without a dim, or an input that would be computed twice.
    """
    text, extra = (source.code(softmax.input), ()) if direct else reuse(source, softmax.input, "logits")
    if softmax.form == "module":
        dim = softmax.argument(0, "dim")
        if dim is None:
            raise Unfixable("nn.Softmax without a dim picks one by the number of axes")
        new, needs = function_text(source, log, "torch.nn.functional.log_softmax", text, f"dim={source.code(dim)}")
    else:
        call, needs = sibling_call(source, softmax.node, "log_softmax")
        if extra:
            call = cst.ensure_type(call.deep_replace(softmax.input, cst.parse_expression(text)), cst.Call)
        new = source.code(call)
    imports = (AddImport(needs),) if needs is not None else ()
    return (Replace(log, new), *imports, *extra)


def negation(source: Source, node: cst.BaseExpression) -> str:
    """The text of -x as a call's argument: `x` for `-x`, `k * x` for `-k * x`, else `-x`."""
    bare = node.with_changes(lpar=(), rpar=())
    if isinstance(bare, cst.UnaryOperation) and isinstance(bare.operator, cst.Minus):
        return argument(source, bare.expression)
    stripped = _without_leading_minus(bare)
    if stripped is not None:
        return source.code(stripped)
    found = operation(source, node, "neg")
    if found is not None and found.plain:
        return argument(source, found.input)
    return f"-{operand(source, node) if not isinstance(bare, (cst.Integer, cst.Float)) else source.code(bare)}"


def _without_leading_minus(node: cst.BaseExpression) -> cst.BaseExpression | None:
    """`k * x` for `-k * x` and `-k / x`; None for anything else."""
    if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Minus) and not node.lpar:
        return node.expression
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, (cst.Multiply, cst.Divide)) and not node.lpar:
        left = _without_leading_minus(node.left)
        return node.with_changes(left=left) if left is not None else None
    return None


_LARGEST_EXP = {"float16": 11.089, "float64": 709.78}


def exp_limit(source: Source, value: Value) -> float:
    """The argument from which exp overflows in what the code runs in, as far as that is known: float32 unless said otherwise."""
    dtype = value.dtype if value.dtype in _LARGEST_EXP else source.settings.dtype
    return _LARGEST_EXP.get(dtype or "", 88.72)


def may_overflow_exp(source: Source, argument: cst.BaseExpression) -> bool:
    """Whether exp of a tensor may overflow: nothing proves its argument small, and it is not made of constants or noise."""
    value = value_of(source, argument)
    if value.high <= exp_limit(source, value) or value.is_integer or value.kind in ("numpy", "number", "integer", "other"):
        return False
    return value.origin not in ("constant", "noise") and not _subtracts_a_maximum(source, argument)


def _subtracts_a_maximum(source: Source, node: cst.CSTNode) -> bool:
    """Whether something called, or made as, a maximum is subtracted in an expression: `r * (x - x_max)` is what its author made stable."""
    sides = binary(node, "-")
    if sides is not None:
        made = source.code(definition(source, sides[1])) + source.code(sides[1])
        if re.search(r"(?<![a-z])a?max(?![a-z])", made) is not None:
            return True
    if isinstance(node, cst.Name):
        made_as = definition(source, node)
        return made_as is not node and not isinstance(made_as, cst.Name) and _subtracts_a_maximum(source, made_as)
    return any(_subtracts_a_maximum(source, child) for child in node.children)


def is_double_default(source: Source) -> bool:
    """Whether the file, or the command line, makes float64 the dtype of the run."""
    if source.settings.dtype is not None:
        return source.settings.dtype == "float64"
    return re.search(r"set_default_dtype\(\s*\w+\.(float64|double)", source.text) is not None


def is_epsilon_name(node: cst.BaseExpression) -> bool:
    """Whether an expression is called like a small guard: `eps`, `self.epsilon`, `EPS`, `tiny`, `delta`."""
    name = node.value if isinstance(node, cst.Name) else node.attr.value if isinstance(node, cst.Attribute) else ""
    return re.search(r"(?i)(^|_)(eps|epsilon|tiny|delta|jitter|small)($|_|\d)", name) is not None


def rewritten(source: Source, node: cst.CSTNode, parts: Mapping[cst.CSTNode, str]) -> str:
    """The text of `node` with some of its parts replaced, their parentheses with them; comments and layout stay."""
    start, end = source.span(node)
    changes = sorted((*_with_parentheses(source, part), text) for part, text in parts.items())
    pieces: list[str] = []
    for first, last, text in changes:
        pieces.extend((source.text[start:first], text))
        start = last
    return "".join((*pieces, source.text[start:end]))


def _with_parentheses(source: Source, node: cst.CSTNode) -> tuple[int, int]:
    start, end = source.span(node)
    for _ in getattr(node, "lpar", ()):
        opening, closing = source.text.rfind("(", 0, start), source.text.find(")", end)
        if source.text[opening + 1 : start].strip() or source.text[end:closing].strip():
            break  # a comment lies between: the parentheses stay
        start, end = opening, closing + 1
    return start, end


def is_half_in_sight(source: Source) -> bool:
    """Whether half precision may be in play: `--dtype float16`, or half or autocast in the file."""
    if source.settings.dtype is not None:
        return source.settings.dtype in ("float16", "half", "fp16")
    return any(mark in source.text for mark in _HALF_MARKS)
