"""What an expression can be: kind, range, dtype and where it comes from, as far as the function shows.

An abstract value errs on one side only: a range that is not proven is unbounded, a kind that is not
known is unknown. Rules fire on what they need to be sure of, so ignorance keeps them quiet or, for
ranges, keeps the hazard in sight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import libcst as cst

from patches import constants, flow, names, operations
from patches.abstract_value import UNKNOWN, Kind, Value, combine, join
from patches.gradient_flow import no_grad_at
from patches.operation_values import dtype_name, value_of_operation
from patches.ranges import AUTHORS_BOUND, ELEMENTWISE_RANGES, SAME_RANGE, arithmetic, power
from patches.source import Binding, Source

__all__ = ["TENSOR_ONLY_METHODS", "Environment", "Value", "dtype_name", "is_other", "is_tensor", "no_grad_at", "value_of"]

_DEPTH = 24
_NO_CYCLE = 1 << 30
_STEPS = 1_000
"""Expressions looked at for one question. Chains of branches that rebind one name are exponential; beyond this the answer is: unknown."""
_FILE_STEPS, _FEW_STEPS = 20_000, 100
"""And for a file (an ordinary one of a thousand lines takes a few thousand); one that has used them up gets short answers from then on."""
_BOUNDING = re.compile(r"(?i)clamp|clip(?!_grad)|bound|squash|saturat")
"""Helpers from elsewhere that say by name that they bound their argument."""


Environment = dict[str, Value]

_NOT_TENSORS = frozenset(
    "device dtype size Size finfo iinfo Generator manual_seed no_grad enable_grad inference_mode load save is_tensor compile jit cuda amp optim "
    "set_grad_enabled get_default_dtype numel is_available manual_seed_all save_for_backward autocast GradScaler".split()
)
TENSOR_ONLY_METHODS = frozenset(
    "softmax log_softmax sigmoid logsigmoid logsumexp unsqueeze clamp clamp_min clamp_max masked_fill masked_fill_ exp"
    " expm1 log log1p log2 sqrt tanh rsqrt square "
    "detach backward requires_grad_ expand expand_as softplus index_select scatter scatter_ masked_select contiguous type_as unbind chunk exp_ log_ "
    "sqrt_ sigmoid_ clamp_ permute abs pow neg relu logit atanh erf reciprocal norm cuda cpu float half double bfloat16".split()
)
"""Methods that torch tensors have and numpy arrays, numbers and strings have not (`clip` and `sum` are shared)."""
_ARRAY_MODULES = ("numpy", "jax", "cupy", "scipy", "tensorflow", "mxnet", "paddle", "sympy", "mpmath", "pandas", "autograd")


def value_of(source: Source, node: cst.BaseExpression, environment: Environment | None = None) -> Value:
    """The abstract value of an expression where it stands; `environment` gives values of parameters."""
    return _Evaluation(source, environment or {}).of(node)


def is_tensor(source: Source, node: cst.BaseExpression) -> bool:
    """Whether an expression is a tensor, from its making, its annotation or a method only tensors have."""
    value = value_of(source, node)
    if value.kind != "unknown":
        return value.kind == "tensor"
    return isinstance(node, cst.Name) and node.value in _used_as_tensors(source, node)


def is_other(source: Source, node: cst.BaseExpression) -> bool:
    """Whether an expression is known not to be a tensor."""
    return value_of(source, node).kind in ("numpy", "number", "integer", "module", "other")


def _used_as_tensors(source: Source, node: cst.CSTNode) -> set[str]:
    """Names on which the function around `node` calls a method that only tensors have."""
    memo: dict[cst.CSTNode, set[str]] = source.memo.setdefault("used_as_tensors", {})
    function = source.function_of(node) or source.module
    if not memo:
        memo[source.module] = set()
        for call in source.nodes(cst.Call):
            assert isinstance(call, cst.Call)
            if isinstance(call.func, cst.Attribute) and isinstance(call.func.value, cst.Name) and call.func.attr.value in TENSOR_ONLY_METHODS:
                memo.setdefault(source.function_of(call) or source.module, set()).add(call.func.value.value)
            full = names.qualified(source, call.func)
            if full is not None and full.startswith(("torch.nn.functional.", "torch.")) and call.args and isinstance(call.args[0].value, cst.Name):
                bare = full.rpartition(".")[2]
                if operations.canonical_name(full) in ELEMENTWISE_RANGES or bare in TENSOR_ONLY_METHODS:
                    memo.setdefault(source.function_of(call) or source.module, set()).add(call.args[0].value.value)
    return memo.get(function, set())


class _Evaluation:
    """One evaluation; without an environment, results are kept for the file."""

    def __init__(self, source: Source, environment: Environment) -> None:
        self.source = source
        self.environment = environment
        self.memo: dict[cst.CSTNode, Value] = source.memo.setdefault("values", {}) if not environment else {}
        self.active: dict[cst.CSTNode, int] = {}
        self.lowest = _NO_CYCLE
        self.calls = 0
        spent: list[int] = source.memo.setdefault("steps", [0])
        self.steps = [_STEPS if spent[0] < _FILE_STEPS else _FEW_STEPS]  # shared with the evaluations of helpers
        self.spent = spent

    def of(self, node: cst.BaseExpression) -> Value:
        if node in self.memo:
            return self.memo[node]
        depth = len(self.active)
        self.steps[0] -= 1
        self.spent[0] += 1
        if self.steps[0] < 0:
            self.lowest = 0
            return UNKNOWN
        if node in self.active:
            self.lowest = min(self.lowest, self.active[node])
            return UNKNOWN
        if depth > _DEPTH:
            self.lowest = 0
            return UNKNOWN
        outer, self.lowest = self.lowest, _NO_CYCLE
        self.active[node] = depth
        try:
            value = self._compute(node)
        finally:
            del self.active[node]
        if self.lowest >= depth or (depth == 0 and self.steps[0] < 0):  # nothing it read is still being worked out: the result is final
            self.memo[node] = value
            self.lowest = _NO_CYCLE
        self.lowest = min(self.lowest, outer)
        return value

    def _compute(self, node: cst.BaseExpression) -> Value:
        constant = constants.number(self.source, node)
        if constant is not None and not math.isnan(constant):
            kind: Kind = "integer" if isinstance(node, cst.Integer) else "number"
            if isinstance(node, cst.Call) and (names.qualified(self.source, node.func) or "").startswith("torch."):
                kind = "tensor"
            return Value(kind, constant, constant, origin="constant")
        if isinstance(node, cst.Name):
            return self._name(node)
        if isinstance(node, cst.Attribute):
            return self._attribute(node)
        if isinstance(node, cst.Call):
            return self._call(node)
        if isinstance(node, cst.BinaryOperation):
            return self._binary(node)
        if isinstance(node, cst.UnaryOperation):
            inner = self.of(node.expression)
            if isinstance(node.operator, cst.Minus):
                return replace(inner, low=-inner.high, high=-inner.low)
            return Value(inner.kind, 0, 1, "bool") if isinstance(node.operator, cst.Not) else replace(inner, low=-math.inf, high=math.inf)
        if isinstance(node, cst.Subscript):
            return self._subscript(node)
        if isinstance(node, cst.IfExp):
            return join([self.of(node.body), self.of(node.orelse)])
        if isinstance(node, cst.Comparison):
            kinds = {self.of(node.left).kind, *(self.of(target.comparator).kind for target in node.comparisons)}
            return Value("tensor" if "tensor" in kinds else "unknown", 0, 1, "bool")
        if isinstance(node, cst.NamedExpr):
            return self.of(node.value)
        if isinstance(node, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString, cst.Dict, cst.Lambda, cst.Set)):
            return Value("other")
        return UNKNOWN

    # names ------------------------------------------------------------------------------------------

    def _name(self, node: cst.Name) -> Value:
        if node.value in self.environment and node.value not in ("self",):
            found = flow.reaching(self.source, node)
            if found is not None and all(b.kind == "parameter" for b in found):
                return self.environment[node.value]
        found = flow.reaching(self.source, node)
        if found is None:
            return Value("other") if names.qualified(self.source, node) is not None else UNKNOWN
        if not found:
            return UNKNOWN
        return join([self._binding(binding) for binding in found])

    def _binding(self, binding: Binding) -> Value:
        if binding.kind == "assign" and binding.value is not None:
            if binding.index is None:
                value = self.of(binding.value)
                if isinstance(binding.node, cst.AnnAssign):
                    value = self._annotated(binding.node.annotation, value)
                return value
            return join([self.of(element) for element in self.elements(binding.value, binding.index)])
        if binding.kind == "augment" and isinstance(binding.node, cst.AugAssign) and isinstance(binding.node.target, cst.Name):
            return self._augmented(binding.node)
        if binding.kind == "parameter" and isinstance(binding.node, cst.Param):
            return self._parameter(binding.node)
        if binding.kind in ("import", "function", "class"):
            return Value("other")
        if binding.kind == "iterate" and binding.value is not None and binding.index is None:
            if isinstance(binding.value, cst.Call) and names.qualified(self.source, binding.value.func) in ("builtins.range", "builtins.len"):
                return Value("integer", -math.inf, math.inf)
            inner = self.of(binding.value)
            return inner if inner.kind in ("tensor", "numpy") else UNKNOWN
        return UNKNOWN

    def _augmented(self, node: cst.AugAssign) -> Value:
        assert isinstance(node.target, cst.Name)
        before = self.of(node.target)
        right = self.of(node.value)
        if isinstance(node.operator, cst.AddAssign):
            return combine(before, right, before.low + right.low, before.high + right.high)
        return combine(before, right, -math.inf, math.inf)

    def _parameter(self, node: cst.Param) -> Value:
        if isinstance(node.name, cst.Name) and node.name.value in ("self", "cls"):
            return Value("other")
        default = constants.number(self.source, node.default, defaults=False)
        start = UNKNOWN
        if default is not None:
            start = Value("integer" if isinstance(node.default, cst.Integer) else "number", origin="data")
        elif isinstance(node.default, (cst.SimpleString, cst.Dict, cst.List, cst.Tuple)):
            start = Value("other")
        if node.annotation is not None:
            return self._annotated(node.annotation, start)
        function = self.source.function_of(node)
        if start is UNKNOWN and function is not None and function.name.value == "forward" and self._is_module_class(self.source.class_of(function)):
            return Value("unknown", origin="data")
        return start

    def _annotated(self, annotation: cst.Annotation, value: Value) -> Value:
        text = self.source.code(annotation.annotation).strip("\"' ")
        bare = {part.strip().rpartition(".")[2] for part in text.replace("Optional[", "").replace("]", "").split("|")} - {"None"}
        if bare and bare <= {"Tensor", "FloatTensor", "Parameter", "DoubleTensor", "HalfTensor"}:
            dtype = "float64" if bare == {"DoubleTensor"} else "float16" if bare == {"HalfTensor"} else value.dtype
            return replace(value, kind="tensor", dtype=dtype, origin=value.origin if value.origin != "unknown" else "data")
        if bare and bare <= {"LongTensor", "IntTensor", "BoolTensor", "ByteTensor"}:
            return replace(value, kind="tensor", dtype="int64", origin="data")
        if text.startswith(("Float[", "Num[", "Shaped[", "TensorType[", "Float[Tensor")):  # jaxtyping, torchtyping
            return replace(value, kind="tensor", origin="data")
        if bare and bare <= {"float", "int", "bool", "complex", "Number"}:
            return replace(value, kind="integer" if bare <= {"int", "bool"} else "number", origin="data")
        if (bare and bare <= {"ndarray", "NDArray", "ArrayLike"}) or text.startswith(("NDArray[", "np.", "numpy.")):
            return replace(value, kind="numpy", dtype="float64")
        if bare and all(part.isidentifier() for part in bare) and not bare & {"Any", "object", "T"} and "Tensor" not in text:
            return replace(value, kind="other")
        return value

    def _is_module_class(self, owner: cst.ClassDef | None, depth: int = 0) -> bool:
        if owner is None or depth > 4:
            return False
        for argument in owner.bases:
            full = names.qualified(self.source, argument.value) or self.source.code(argument.value)
            if full.endswith("Module") or full.startswith("torch.nn."):
                return True
        return any(self._is_module_class(base, depth + 1) for base in flow.base_classes(self.source, owner))

    def _attribute(self, node: cst.Attribute) -> Value:
        if isinstance(node.value, cst.Name) and node.value.value in ("self", "cls"):
            latest = flow.set_before(self.source, node)
            values = [self._binding(binding) for binding in ([latest] if latest is not None else flow.attribute_values(self.source, node))]
            if not values:
                return self._buffer(node)
            known = [value for value in values if value is not UNKNOWN]
            return join(values) if len(known) == len(values) else UNKNOWN
        name = node.attr.value
        full = names.qualified(self.source, node)
        if full is not None:
            return Value("other")
        if name in ("T", "mT", "data", "real", "values", "H"):
            inner = self.of(node.value)
            return replace(inner, detached=inner.detached or name == "data") if inner.kind == "tensor" else UNKNOWN
        if name == "grad":
            return Value("tensor", detached=True, origin="data")
        if name in ("shape", "dtype", "device", "ndim", "training"):
            return Value("other")
        return UNKNOWN

    def _buffer(self, node: cst.Attribute) -> Value:
        """A buffer of the class is state, not something that training pushes."""
        names_of: dict[cst.CSTNode | None, set[str]] = self.source.memo.setdefault("buffers", {})
        if not names_of:
            names_of[self.source.module] = set()
            for call in self.source.nodes(cst.Call):
                if isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute) and call.func.attr.value == "register_buffer" and call.args:
                    text = call.args[0].value
                    if isinstance(text, cst.SimpleString) and isinstance(text.evaluated_value, str):
                        names_of.setdefault(self.source.class_of(call), set()).add(text.evaluated_value)
        if node.attr.value in names_of.get(self.source.class_of(node), ()):
            return Value("tensor", origin="constant", detached=True)
        return UNKNOWN

    def elements(self, node: cst.BaseExpression, index: int) -> Sequence[cst.BaseExpression]:
        """The expressions that tuple position `index` of `node` may be; `node` itself for a split tensor."""
        if isinstance(node, (cst.Tuple, cst.List)):
            if any(isinstance(element, cst.StarredElement) for element in node.elements):
                return ()
            return (node.elements[index].value,) if 0 <= index < len(node.elements) else ()
        if isinstance(node, cst.Call):
            operation = operations.parse(self.source, node)
            if operation is not None and operation.name in ("chunk", "split", "unbind", "tensor_split", "max", "min", "sort", "topk"):
                return (operation.input,)
            if operation is not None and operation.form != "module" and operation.name in ("where", "nonzero", "meshgrid"):
                return (node,)  # a tuple of alike tensors
            function = flow.local_function(self.source, node)
            if function is not None:
                found: list[cst.BaseExpression] = []
                for expression in flow.returned(self.source, function):
                    if isinstance(expression, cst.Tuple):
                        found.extend(self.elements(expression, index))
                return found
        return ()

    # calls ------------------------------------------------------------------------------------------

    def _call(self, node: cst.Call) -> Value:
        value = self._called(node)
        callee = node.func.attr.value if isinstance(node.func, cst.Attribute) else node.func.value if isinstance(node.func, cst.Name) else ""
        if not value.is_bounded and _BOUNDING.search(callee) and operations.canonical_name(names.qualified(self.source, node.func) or "") is None:
            if value.high == math.inf and operations.ALIASES.get(callee, callee) not in ("clamp", "clamp_min", "clamp_max", "clip_grad_norm_"):
                return replace(value, low=max(value.low, -AUTHORS_BOUND), high=AUTHORS_BOUND)
        return value

    def _called(self, node: cst.Call) -> Value:
        source = self.source
        full = names.qualified(source, node.func)
        if full is not None:
            if full.split(".")[0] in _ARRAY_MODULES:
                return Value("numpy", *self._range_of_numpy(full, node), dtype="float64")
            if full.startswith("builtins.") or full.startswith("math."):
                return self._builtin(full, node)
            if full == "torch.nn.Parameter" or full == "torch.nn.parameter.Parameter":
                return Value("tensor", origin="parameter")
            if full.startswith("torch.nn.") and not full.startswith("torch.nn.functional.") and full.rpartition(".")[2][:1].isupper():
                return Value("module")
            if full.rpartition(".")[2] in _NOT_TENSORS or not full.startswith("torch."):
                return UNKNOWN if not full.startswith("torch.") else Value("other")
            if full.startswith(("torch.optim.", "torch.distributions.", "torch.utils.", "torch.cuda.", "torch.jit.")):
                return Value("other")
        operation = operations.parse(source, node)
        if operation is not None and operation.form != "method":
            return value_of_operation(self.source, operation, self.of)
        helper = self._helper(node)
        if helper is not None:
            return helper
        if operation is not None:
            receiver = self.of(operation.input)
            if receiver.kind in ("other", "numpy", "number", "integer", "module"):
                return self._foreign_method(operation, receiver)
            if receiver.kind == "tensor" or operation.name in TENSOR_ONLY_METHODS:
                return value_of_operation(self.source, operation, self.of)
            if operation.name in ("rsample", "sample", "icdf", "entropy", "log_prob"):
                return Value("tensor", origin="data")
            if operation.name in SAME_RANGE or operation.name in ELEMENTWISE_RANGES or operation.name in ("sum", "square"):
                return replace(value_of_operation(self.source, operation, self.of), kind="unknown")
            return UNKNOWN
        return self._module_output(node)

    def _module_output(self, node: cst.Call) -> Value:
        """The value of calling a layer: a raw network output."""
        constructor = operations.module_constructor(self.source, node.func)
        if constructor is not None:
            full = names.qualified(self.source, constructor.func) or ""
            if full == "torch.nn.Sequential" and constructor.args and not constructor.args[-1].star:
                last = constructor.args[-1].value
                if isinstance(last, cst.Call):
                    name = operations.MODULES.get((names.qualified(self.source, last.func) or "").rpartition(".")[2])
                    if name is not None:
                        low, high = ELEMENTWISE_RANGES.get(name, (-math.inf, math.inf))
                        return Value("tensor", low, high, origin="network")
            return Value("tensor", origin="network")
        return UNKNOWN

    def _helper(self, node: cst.Call) -> Value | None:
        """Looks through a call of a function of this file: the obvious helper that bounds its argument."""
        source = self.source
        function = flow.local_function(source, node)
        if function is None and isinstance(node.func, cst.Attribute) and isinstance(node.func.value, cst.Name) and node.func.value.value == "self":
            values = [self._binding(binding) for binding in flow.attribute_values(source, node.func)]
            if values and all(value.kind in ("module", "other") for value in values):
                return self._module_output_or_none(node)
        if function is None or self.calls >= 4 or len(self.active) > _DEPTH // 2:
            return self._module_output_or_none(node) if function is None else UNKNOWN
        results = flow.returned(source, function)
        if not results or any(isinstance(result, cst.Tuple) for result in results):
            return UNKNOWN
        environment = self._arguments(function, node)
        inner = _Evaluation(source, environment)
        inner.calls = self.calls + 1
        inner.steps = self.steps
        inner.active = dict(self.active)
        return join([inner.of(result) for result in results])

    def _module_output_or_none(self, node: cst.Call) -> Value | None:
        value = self._module_output(node)
        return None if value is UNKNOWN else value

    def _arguments(self, function: cst.FunctionDef, call: cst.Call) -> Environment:
        parameters = [p for p in (*function.params.posonly_params, *function.params.params) if isinstance(p.name, cst.Name)]
        if parameters and parameters[0].name.value in ("self", "cls") and isinstance(call.func, cst.Attribute):
            parameters = parameters[1:]
        environment: Environment = {" ": UNKNOWN}  # never empty: results under an environment are not kept
        for parameter in (*parameters, *function.params.kwonly_params):
            environment[parameter.name.value] = self.of(parameter.default) if parameter.default is not None else UNKNOWN
        for position, arg in enumerate(call.args):
            if arg.star:
                return {" ": UNKNOWN}
            if arg.keyword is not None:
                environment[arg.keyword.value] = self.of(arg.value)
            elif position < len(parameters):
                environment[parameters[position].name.value] = self.of(arg.value)
        return environment

    def _builtin(self, full: str, node: cst.Call) -> Value:
        name = full.rpartition(".")[2]
        arguments = [self.of(arg.value) for arg in node.args if not arg.star]
        if full.startswith("math.") or name in ("float", "round"):
            inner = arguments[0] if arguments and name in ("float", "round") else UNKNOWN
            return Value("number", inner.low, inner.high, dtype="float64")
        if name in ("int", "len", "ord", "hash", "id"):
            return Value("integer", 0 if name == "len" else -math.inf)
        if name == "abs" and arguments:
            return replace(arguments[0], low=0.0)
        if name in ("min", "max") and len(arguments) > 1:
            pick = min if name == "min" else max
            return replace(join(arguments), low=pick(a.low for a in arguments), high=pick(a.high for a in arguments))
        if name == "sum":
            return UNKNOWN
        return (
            Value("other")
            if name in ("str", "dict", "list", "tuple", "set", "open", "super", "isinstance", "getattr") and name != "getattr"
            else UNKNOWN
        )

    def _range_of_numpy(self, full: str, node: cst.Call) -> tuple[float, float]:
        return ELEMENTWISE_RANGES.get(full.rpartition(".")[2], (-math.inf, math.inf))

    def _foreign_method(self, operation: operations.Operation, receiver: Value) -> Value:
        if receiver.kind == "numpy":
            return Value("numpy", dtype="float64")
        if receiver.kind in ("number", "integer"):
            return UNKNOWN
        return UNKNOWN

    # operators --------------------------------------------------------------------------------------

    def _binary(self, node: cst.BinaryOperation) -> Value:
        left, right = self.of(node.left), self.of(node.right)
        if isinstance(node.operator, cst.Power):
            exponent = constants.number(self.source, node.right)
            low, high = power(left.low, left.high, exponent) if exponent is not None else (-math.inf, math.inf)
            return combine(left, right, low, high)
        symbol = {cst.Add: "+", cst.Subtract: "-", cst.Multiply: "*", cst.Divide: "/"}.get(type(node.operator))
        if symbol is None:
            return combine(left, right, -math.inf, math.inf)
        low, high = arithmetic(symbol, left, right)
        if symbol == "*" and self.source.code(node.left) == self.source.code(node.right):
            low, high = 0.0, max(high, 0.0)
        if symbol == "-" and self._subtracts_maximum(node):
            high = 0.0
        return combine(left, right, low, high)

    def _subtracts_maximum(self, node: cst.BinaryOperation) -> bool:
        """`x - x.max(...)`, `x - x.logsumexp(...)`, also through a local name."""
        right = node.right
        for _ in range(4):
            right = self._first_definition(right)
            if isinstance(right, cst.Subscript):
                right = right.value
            elif isinstance(right, cst.Attribute) and right.attr.value == "values":
                right = right.value
            elif isinstance(right, cst.Call):
                operation = operations.parse(self.source, right)
                if operation is None:
                    return False
                if operation.name in ("max", "amax", "logsumexp"):
                    return self.source.code(operation.input) == self.source.code(node.left)
                if operation.name not in SAME_RANGE:
                    return False
                right = operation.input
            else:
                return False
        return False

    def _first_definition(self, node: cst.BaseExpression) -> cst.BaseExpression:
        if not isinstance(node, cst.Name):
            return node
        found = flow.reaching(self.source, node)
        if found is not None and len(found) == 1 and found[0].kind == "assign" and found[0].index in (None, 0) and found[0].value is not None:
            return found[0].value
        return node

    def _subscript(self, node: cst.Subscript) -> Value:
        inner = self.of(node.value)
        if inner.kind in ("tensor", "numpy"):
            return inner
        if isinstance(node.value, cst.Call):  # `x.max(1)[0]`, `self.encode(x)[1]`
            index = constants.number(self.source, node.slice[0].slice.value) if isinstance(node.slice[0].slice, cst.Index) else None
            if index is not None:
                found = [self.of(element) for element in self.elements(node.value, int(index))]
                return join(found) if found else UNKNOWN
        return replace(inner, kind="unknown") if inner.kind == "unknown" else UNKNOWN
