"""Ranges: of elementary functions, and through arithmetic. A closed interval in, a closed interval out, infinite where nothing is proven."""

from __future__ import annotations

import math

from patches.abstract_value import Value

NOISE = 8.0  # a standard normal draw beyond 8 does not happen in a training run
AUTHORS_BOUND = 10.0  # a bound that is given but cannot be read off: its author chose something modest

ELEMENTWISE_RANGES: dict[str, tuple[float, float]] = {
    "tanh": (-1, 1), "sigmoid": (0, 1), "softmax": (0, 1), "log_softmax": (-math.inf, 0), "logsigmoid": (-math.inf, 0), "softmin": (0, 1),
    "gumbel_softmax": (0, 1), "softplus": (0, math.inf), "relu": (0, math.inf), "relu6": (0, 6), "elu": (-1, math.inf), "hardsigmoid": (0, 1),
    "softsign": (-1, 1), "erf": (-1, 1), "sin": (-1, 1), "cos": (-1, 1), "atan": (-1.6, 1.6), "cosine_similarity": (-1, 1), "normalize": (-1, 1),
    "norm": (0, math.inf), "linalg.norm": (0, math.inf), "linalg.vector_norm": (0, math.inf), "std": (0, math.inf), "var": (0, math.inf),
    "square": (0, math.inf), "cdist": (0, math.inf), "mse_loss": (0, math.inf), "cross_entropy": (0, math.inf), "sign": (-1, 1), "rand": (0, 1),
    "rand_like": (0, 1), "uniform": (0, 1), "bernoulli": (0, 1), "randn": (-NOISE, NOISE), "randn_like": (-NOISE, NOISE), "eye": (0, 1),
    "zeros": (0, 0), "zeros_like": (0, 0), "ones": (1, 1), "ones_like": (1, 1), "gelu": (-0.2, math.inf), "silu": (-0.3, math.inf),
}  # fmt: skip
SAME_RANGE = frozenset(
    "view reshape squeeze unsqueeze expand expand_as repeat permute transpose t flatten contiguous detach clone to float half double bfloat16 type "
    "type_as cpu cuda requires_grad_ chunk split unbind gather index_select masked_select narrow flip roll mean amax amin max min median mode sort "
    "topk dropout identity nan_to_num select movedim swapaxes tile take diagonal tril triu broadcast_to repeat_interleave unfold cummax cummin "
    "masked_fill view_as reshape_as squeeze_ unsqueeze_ requires_grad item tensor as_tensor".split()
)


def monotone(name: str, low: float, high: float) -> tuple[float, float]:
    """The range of a monotone function over an interval."""

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


def power(low: float, high: float, exponent: float) -> tuple[float, float]:
    """The range of a constant power over an interval."""
    if exponent == int(exponent) and int(exponent) % 2 == 0:
        if exponent > 0 and math.isfinite(low) and math.isfinite(high) and max(abs(low), abs(high)) < 1e100 and exponent < 3:
            return 0.0, float(max(abs(low), abs(high)) ** exponent)
        return 0.0, math.inf
    return (0.0 if low >= 0 else -math.inf), math.inf


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0.0 or b == 0.0 else a * b


def arithmetic(symbol: str, left: Value, right: Value) -> tuple[float, float]:
    """The range of left <symbol> right, for the four operations."""
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
