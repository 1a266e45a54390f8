"""What an expression can be: kind, range, dtype and where it comes from, as far as the function shows.

An abstract value errs on one side only: a range that is not proven is unbounded, a kind that is not
known is unknown. Rules fire on what they need to be sure of, so ignorance keeps them quiet or, for
ranges, keeps the hazard in sight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import libcst as cst

from patches import constants, flow, names, operations
from patches.source import Binding, Source

Kind = Literal["unknown", "tensor", "numpy", "number", "integer", "module", "other"]
Origin = Literal["unknown", "constant", "noise", "data", "parameter", "network"]

_RANK: dict[Origin, int] = {"constant": 0, "noise": 1, "unknown": 2, "data": 3, "parameter": 4, "network": 5}
_DEPTH = 24
_NO_CYCLE = 1 << 30
_STEPS = 2_000
"""Expressions looked at for one question. Chains of branches that rebind one name are exponential; beyond this the answer is: unknown."""
_BOUNDING = re.compile(r"(?i)clamp|clip(?!_grad)|bound|squash|saturat")
"""Helpers from elsewhere that say by name that they bound their argument."""
_AUTHORS_BOUND = 10.0  # a bound that is given but cannot be read off: its author chose something modest
_NOISE = 8.0  # a standard normal draw beyond 8 does not happen in a training run


@dataclass(frozen=True, slots=True)
class Value:
    """Kind, closed range, dtype (`float64`, `int64`, ... or None), origin, and whether gradients can flow into it."""

    kind: Kind = "unknown"
    low: float = -math.inf
    high: float = math.inf
    dtype: str | None = None
    origin: Origin = "unknown"
    detached: bool = False

    @property
    def is_integer(self) -> bool:
        """An int, or a tensor of an integer or bool dtype."""
        return self.kind == "integer" or (self.dtype is not None and self.dtype.startswith(("int", "uint", "bool", "long", "short")))

    @property
    def is_bounded(self) -> bool:
        """Whether both ends of the range are proven."""
        return math.isfinite(self.low) and math.isfinite(self.high)


UNKNOWN = Value()
Environment = dict[str, Value]

_ELEMENTWISE_RANGES: dict[str, tuple[float, float]] = {
    "tanh": (-1, 1), "sigmoid": (0, 1), "softmax": (0, 1), "log_softmax": (-math.inf, 0), "logsigmoid": (-math.inf, 0), "softmin": (0, 1),
    "gumbel_softmax": (0, 1), "softplus": (0, math.inf), "relu": (0, math.inf), "relu6": (0, 6), "elu": (-1, math.inf), "hardsigmoid": (0, 1),
    "softsign": (-1, 1), "erf": (-1, 1), "sin": (-1, 1), "cos": (-1, 1), "atan": (-1.6, 1.6), "cosine_similarity": (-1, 1), "normalize": (-1, 1),
    "norm": (0, math.inf), "linalg.norm": (0, math.inf), "linalg.vector_norm": (0, math.inf), "std": (0, math.inf), "var": (0, math.inf),
    "square": (0, math.inf), "cdist": (0, math.inf), "mse_loss": (0, math.inf), "cross_entropy": (0, math.inf), "sign": (-1, 1), "rand": (0, 1),
    "rand_like": (0, 1), "uniform": (0, 1), "bernoulli": (0, 1), "randn": (-_NOISE, _NOISE), "randn_like": (-_NOISE, _NOISE), "eye": (0, 1),
    "zeros": (0, 0), "zeros_like": (0, 0), "ones": (1, 1), "ones_like": (1, 1), "gelu": (-0.2, math.inf), "silu": (-0.3, math.inf),
}  # fmt: skip
_SAME_RANGE = frozenset(
    "view reshape squeeze unsqueeze expand expand_as repeat permute transpose t flatten contiguous detach clone to float half double bfloat16 type "
    "type_as cpu cuda requires_grad_ chunk split unbind gather index_select masked_select narrow flip roll mean amax amin max min median mode sort "
    "topk dropout identity nan_to_num select movedim swapaxes tile take diagonal tril triu broadcast_to repeat_interleave unfold cummax cummin "
    "masked_fill view_as reshape_as squeeze_ unsqueeze_ requires_grad item tensor as_tensor".split()
)
_MAKERS = frozenset(
    "tensor as_tensor zeros ones full arange linspace logspace eye empty zeros_like ones_like full_like empty_like rand randn randint".split()
)
_NOT_TENSORS = frozenset(
    "device dtype size Size finfo iinfo Generator manual_seed no_grad enable_grad inference_mode load save is_tensor compile jit cuda amp optim "
    "set_grad_enabled get_default_dtype numel is_available manual_seed_all save_for_backward autocast GradScaler".split()
)
TENSOR_ONLY_METHODS = frozenset(
    "softmax log_softmax sigmoid logsigmoid logsumexp unsqueeze clamp clamp_min clamp_max masked_fill masked_fill_ exp"
    " expm1 log log1p log2 sqrt tanh rsqrt "
    "detach backward requires_grad_ expand expand_as softplus index_select scatter scatter_ masked_select contiguous type_as unbind chunk exp_ log_ "
    "sqrt_ sigmoid_ clamp_ permute abs pow neg relu logit atanh erf reciprocal norm cuda cpu float half double bfloat16".split()
)
"""Methods that torch tensors have and numpy arrays, numbers and strings have not (`clip` and `sum` are shared)."""
_FLOAT_DTYPES = {"float": "float32", "half": "float16", "double": "float64", "bfloat16": "bfloat16", "long": "int64", "int": "int32", "bool": "bool"}
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
                if operations.canonical_name(full) in _ELEMENTWISE_RANGES or bare in TENSOR_ONLY_METHODS:
                    memo.setdefault(source.function_of(call) or source.module, set()).add(call.args[0].value.value)
    return memo.get(function, set())


def no_grad_at(source: Source, node: cst.CSTNode) -> bool:
    """Whether no gradient flows through `node`.

    `with torch.no_grad()`, `inference_mode` or the decorator; a value that is only read out (`.item()`, `.detach()`,
    `float(...)`); initialisation; the inside of a torch.autograd.Function or of an optimizer.
    """
    if any(_is_no_grad(source, item) for item in source.with_items(node)):
        return True
    function = source.function_of(node)
    if function is not None:
        if any(_is_no_grad(source, decorator.decorator) for decorator in function.decorators) or _INITIALISER.search(function.name.value):
            return True
        owner = source.class_of(function)
        if owner is not None and any(_UNDIFFERENTIATED.search(source.code(base.value)) for base in owner.bases):
            return True
    return _is_read_out(source, node)


_INITIALISER = re.compile(r"^(__init__|reset_parameters|_?init(ialize|ialise)?(_.*)?|.*_init)$")
_UNDIFFERENTIATED = re.compile(r"(^|\.)(autograd\.)?Function$|Optimizer$")
_READ_OUT = frozenset(("item", "detach", "numpy", "tolist"))


def _is_read_out(source: Source, node: cst.CSTNode) -> bool:
    """Whether the value goes, through a chain of methods, into a plain number or a detached tensor."""
    current = node
    while True:
        parent = source.parents.get(current)
        if isinstance(parent, cst.Attribute) and parent.value is current:
            call = source.parents.get(parent)
            if not isinstance(call, cst.Call) or call.func is not parent:
                return False
            if parent.attr.value in _READ_OUT:
                return True
            current = call
        elif isinstance(parent, cst.Arg):
            call = source.parents.get(parent)
            if isinstance(call, cst.Call) and isinstance(call.func, cst.Name) and call.func.value in ("float", "int", "bool", "print"):
                return True
            if not isinstance(call, cst.Call) or operations.parse(source, call) is None:
                return False
            current = call
        else:
            return False


def _is_no_grad(source: Source, node: cst.BaseExpression) -> bool:
    callee = node.func if isinstance(node, cst.Call) else node
    full = names.qualified(source, callee) or ""
    if full in ("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.grad_mode.no_grad"):
        return True
    if full in ("torch.set_grad_enabled", "torch.autograd.set_grad_enabled") and isinstance(node, cst.Call) and node.args:
        return isinstance(node.args[0].value, cst.Name) and node.args[0].value.value == "False"
    return False


def join(values: Sequence[Value]) -> Value:
    """What is true of every one of `values`."""
    if not values:
        return UNKNOWN
    first = values[0]
    kinds = {value.kind for value in values}
    dtypes = {value.dtype for value in values}
    return Value(
        kind=first.kind if len(kinds) == 1 else "unknown",
        low=min(value.low for value in values),
        high=max(value.high for value in values),
        dtype=first.dtype if len(dtypes) == 1 else None,
        origin=max((value.origin for value in values), key=_RANK.__getitem__),
        detached=all(value.detached for value in values),
    )


def dtype_name(source: Source, node: cst.BaseExpression | None) -> str | None:
    """`float16` for `torch.float16`, `torch.half` or `np.float16`; None when it is not a dtype written out."""
    full = names.qualified(source, node) if node is not None else None
    if full is None:
        return None
    module, _, name = full.rpartition(".")
    if module not in ("torch", "numpy"):
        return {"builtins.float": "float64", "builtins.int": "int64", "builtins.bool": "bool"}.get(full)
    if name in _FLOAT_DTYPES and module == "torch":
        return _FLOAT_DTYPES[name]
    return name if name.startswith(("float", "int", "uint", "bfloat", "bool", "complex")) else None


class _Evaluation:
    """One evaluation; without an environment, results are kept for the file."""

    def __init__(self, source: Source, environment: Environment) -> None:
        self.source = source
        self.environment = environment
        self.memo: dict[cst.CSTNode, Value] = source.memo.setdefault("values", {}) if not environment else {}
        self.active: dict[cst.CSTNode, int] = {}
        self.lowest = _NO_CYCLE
        self.calls = 0
        self.steps = [_STEPS]  # shared with the evaluations of helpers

    def of(self, node: cst.BaseExpression) -> Value:
        if node in self.memo:
            return self.memo[node]
        depth = len(self.active)
        self.steps[0] -= 1
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
            return self._combine(before, right, before.low + right.low, before.high + right.high)
        return self._combine(before, right, -math.inf, math.inf)

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
            values = [self._binding(binding) for binding in flow.attribute_values(self.source, node)]
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
                return replace(value, low=max(value.low, -_AUTHORS_BOUND), high=_AUTHORS_BOUND)
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
            return self._operation(operation)
        helper = self._helper(node)
        if helper is not None:
            return helper
        if operation is not None:
            receiver = self.of(operation.input)
            if receiver.kind in ("other", "numpy", "number", "integer", "module"):
                return self._foreign_method(operation, receiver)
            if receiver.kind == "tensor" or operation.name in TENSOR_ONLY_METHODS:
                return self._operation(operation)
            if operation.name in ("rsample", "sample", "icdf", "entropy", "log_prob"):
                return Value("tensor", origin="data")
            if operation.name in _SAME_RANGE or operation.name in _ELEMENTWISE_RANGES or operation.name in ("sum", "square"):
                return replace(self._operation(operation), kind="unknown")
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
                        low, high = _ELEMENTWISE_RANGES.get(name, (-math.inf, math.inf))
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
        return _ELEMENTWISE_RANGES.get(full.rpartition(".")[2], (-math.inf, math.inf))

    def _foreign_method(self, operation: operations.Operation, receiver: Value) -> Value:
        if receiver.kind == "numpy":
            return Value("numpy", dtype="float64")
        if receiver.kind in ("number", "integer"):
            return UNKNOWN
        return UNKNOWN

    def _operation(self, operation: operations.Operation) -> Value:
        name = operation.name
        if name in ("cat", "stack", "hstack", "vstack"):
            parts = [self.of(e.value) for e in operation.input.elements] if isinstance(operation.input, (cst.List, cst.Tuple)) else [UNKNOWN]
            return replace(join(parts), kind="tensor")
        inner = self.of(operation.input)
        if name in _MAKERS:
            low, high = _ELEMENTWISE_RANGES.get(name, (-math.inf, math.inf))
            if name in ("tensor", "as_tensor", "full", "full_like"):
                at = operation.input if name in ("tensor", "as_tensor") else operation.argument(0, "fill_value")
                made = self.of(at) if at is not None else UNKNOWN
                low, high = made.low, made.high
            dtype = dtype_name(self.source, operation.keyword("dtype"))
            return Value("tensor", low, high, dtype, "noise" if name.startswith("rand") else "constant", detached=True)
        low, high = self._range(operation, inner)
        dtype = inner.dtype
        detached = inner.detached or name == "detach"
        if name in _FLOAT_DTYPES:
            dtype = _FLOAT_DTYPES[name]
        elif name in ("to", "type", "sum", "mean", "softmax", "log_softmax", "norm", "prod", "cumsum"):
            written = operation.keyword("dtype") or (operation.argument(0) if name in ("to", "type") else None)
            dtype = dtype_name(self.source, written) or dtype
        elif name in ("argmax", "argmin", "long", "int", "numel", "size", "argsort", "multinomial", "randint"):
            dtype = "int64"
        elif name in ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not", "bool"):
            dtype = "bool"
        if name in ("item", "tolist"):
            return Value("number", low, high, dtype="float64", detached=True, origin=inner.origin)
        if name == "numpy":
            return Value("numpy", low, high, dtype=inner.dtype, detached=True)
        if name in ("size", "dim", "numel", "ndimension", "element_size"):
            return Value("integer")
        origin: Origin = "noise" if name.startswith("rand") else inner.origin
        return Value("tensor", low, high, dtype, origin, detached)

    def _range(self, operation: operations.Operation, inner: Value) -> tuple[float, float]:
        name, low, high = operation.name, inner.low, inner.high
        if name in ("clamp", "clamp_min", "clamp_max", "hardtanh", "nan_to_num"):
            return self._clamp(operation, inner)
        if name in ("relu", "dropout") and name == "relu":
            return max(low, 0.0), max(high, 0.0)
        if name in ("minimum", "maximum", "fmin", "fmax") or (
            name in ("min", "max") and len(operation.rest) == 1 and self._is_other_operand(operation)
        ):
            other = self.of(operation.rest[0].value) if operation.rest else UNKNOWN
            pick = min if name in ("minimum", "fmin", "min") else max
            return pick(low, other.low), pick(high, other.high)
        if name == "where" and len(operation.rest) == 2:
            picked = [self.of(arg.value) for arg in operation.rest]
            return min(v.low for v in picked), max(v.high for v in picked)
        if name == "masked_fill":
            filled = self.of(v) if (v := operation.argument(1, "value")) is not None else UNKNOWN
            return min(low, filled.low), max(high, filled.high)
        if name in ("exp", "exp2", "expm1", "sqrt", "log", "log1p", "rsqrt") or (name == "softplus" and operation.plain):
            return self._monotone(name, low, high)
        if name in _ELEMENTWISE_RANGES:
            fixed_low, fixed_high = _ELEMENTWISE_RANGES[name]
            if name in ("square", "norm", "std", "var") and inner.is_bounded and name == "square":
                return 0.0, max(low * low, high * high)
            return fixed_low, fixed_high
        if name == "abs":
            return 0.0, max(abs(low), abs(high))
        if name == "neg":
            return -high, -low
        if name == "pow" and (exponent := constants.number(self.source, operation.argument(0, "exponent"))) is not None:
            return self._power(low, high, exponent)
        if name in ("mul", "div", "add", "sub") and operation.rest:
            right = self.of(operation.rest[0].value)
            return _arithmetic({"mul": "*", "div": "/", "add": "+", "sub": "-"}[name], inner, right)
        if name == "sum" or name == "cumsum":
            return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
        return (low, high) if name in _SAME_RANGE else (-math.inf, math.inf)

    def _is_other_operand(self, operation: operations.Operation) -> bool:
        other = operation.rest[0]
        return other.keyword is None and self.of(other.value).kind == "tensor"

    def _clamp(self, operation: operations.Operation, inner: Value) -> tuple[float, float]:
        if operation.name == "hardtanh":
            lower, upper = operation.argument(0, "min_val"), operation.argument(1, "max_val")
            low = constants.number(self.source, lower) if lower is not None else -1.0
            high = constants.number(self.source, upper) if upper is not None else 1.0
        elif operation.name == "nan_to_num":
            return inner.low, inner.high
        else:
            lower = operation.argument(0, "min") if operation.name != "clamp_max" else None
            upper = (
                operation.argument(1, "max") if operation.name == "clamp" else operation.argument(0, "max") if operation.name == "clamp_max" else None
            )
            low, high = self._end(lower, -1), self._end(upper, 1)
        out_low = inner.low if low is None else max(inner.low, low)
        out_high = inner.high if high is None else min(inner.high, high)
        return out_low, out_high

    def _end(self, node: cst.BaseExpression | None, side: int) -> float | None:
        """The end of a clamp; one that is given but not a constant counts as some modest bound that its author chose."""
        if node is None or (isinstance(node, cst.Name) and node.value == "None"):
            return None
        known = constants.number(self.source, node)
        if known is not None:
            return known
        value = self.of(node)
        end = value.high if side > 0 else value.low
        return end if math.isfinite(end) else side * _AUTHORS_BOUND

    @staticmethod
    def _monotone(name: str, low: float, high: float) -> tuple[float, float]:
        def at(x: float) -> float:
            try:
                match name:
                    case "exp":
                        return math.exp(x)
                    case "exp2":
                        return math.pow(2.0, x)
                    case "expm1":
                        return math.expm1(x)
                    case "sqrt":
                        return math.sqrt(max(x, 0.0))
                    case "log":
                        return math.log(x) if x > 0 else -math.inf
                    case "softplus":
                        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
                    case "log1p":
                        return math.log1p(x) if x > -1 else -math.inf
            except OverflowError:
                return math.inf
            return math.inf

        if name == "rsqrt":
            return 0.0, math.inf
        return at(low), at(high)

    @staticmethod
    def _power(low: float, high: float, exponent: float) -> tuple[float, float]:
        if exponent == int(exponent) and int(exponent) % 2 == 0:
            if exponent > 0 and math.isfinite(low) and math.isfinite(high) and max(abs(low), abs(high)) < 1e100 and exponent < 3:
                return 0.0, float(max(abs(low), abs(high)) ** exponent)
            return 0.0, math.inf
        return (0.0 if low >= 0 else -math.inf), math.inf

    # operators --------------------------------------------------------------------------------------

    def _binary(self, node: cst.BinaryOperation) -> Value:
        left, right = self.of(node.left), self.of(node.right)
        if isinstance(node.operator, cst.Power):
            exponent = constants.number(self.source, node.right)
            low, high = self._power(left.low, left.high, exponent) if exponent is not None else (-math.inf, math.inf)
            return self._combine(left, right, low, high)
        symbol = {cst.Add: "+", cst.Subtract: "-", cst.Multiply: "*", cst.Divide: "/"}.get(type(node.operator))
        if symbol is None:
            return self._combine(left, right, -math.inf, math.inf)
        low, high = _arithmetic(symbol, left, right)
        if symbol == "*" and self.source.code(node.left) == self.source.code(node.right):
            low, high = 0.0, max(high, 0.0)
        if symbol == "-" and self._subtracts_maximum(node):
            high = 0.0
        return self._combine(left, right, low, high)

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
                if operation.name not in _SAME_RANGE:
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

    @staticmethod
    def _combine(left: Value, right: Value, low: float, high: float) -> Value:
        kinds = (left.kind, right.kind)
        kind: Kind = "unknown"
        if "tensor" in kinds:
            kind = "tensor"
        elif "numpy" in kinds:
            kind = "numpy"
        elif "unknown" not in kinds and "other" not in kinds and "module" not in kinds:
            kind = "integer" if kinds == ("integer", "integer") else "number"
        dtype = left.dtype if left.dtype == right.dtype else left.dtype if right.kind in ("number", "integer") else None
        if right.dtype and left.kind in ("number", "integer"):
            dtype = right.dtype
        if dtype is not None and dtype.startswith(("int", "bool", "uint")) and not (left.is_integer and right.is_integer):
            dtype = None
        if "float64" in (left.dtype if left.kind == "tensor" else None, right.dtype if right.kind == "tensor" else None):
            dtype = "float64"
        origin = max((left.origin, right.origin), key=_RANK.__getitem__)
        return Value(kind, low, high, dtype, origin, left.detached and right.detached)

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


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0.0 or b == 0.0 else a * b


def _arithmetic(symbol: str, left: Value, right: Value) -> tuple[float, float]:
    low, high = _interval(symbol, left, right)
    return -math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high


def _interval(symbol: str, left: Value, right: Value) -> tuple[float, float]:
    if symbol == "+":
        return left.low + right.low, left.high + right.high
    if symbol == "-":
        return left.low - right.high, left.high - right.low
    if symbol == "*":
        corners = [_product(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        return min(corners), max(corners)
    if right.low > 0 or right.high < 0:
        inverse = sorted(1.0 / end if end else math.inf for end in (right.low, right.high))
        corners = [_product(a, b) for a in (left.low, left.high) for b in inverse]
        return min(corners), max(corners)
    if right.low == 0 and right.high > 0:
        return (0.0 if left.low >= 0 else -math.inf), (0.0 if left.high <= 0 else math.inf)
    return -math.inf, math.inf
