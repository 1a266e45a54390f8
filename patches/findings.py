"""The catalogue of findings: one code for a hazard, whether a run or a reader of source met it.

Standard library only: `instrument` reads it at run time and `patches` reads it on machines
without torch. The families (first digit of the code) are those of the project's naming rules:

    0 the checker's own comments
    1 formulas with a stable form          6 the right API
    2 exponentials and logs of raw outputs 7 statistics and linear algebra
    3 epsilons and divisions               8 state and hidden faults
    4 masks                                9 audit notes and noisy rules, off by default
    5 gradients, clipping and AMP order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FixSafety = Literal["safe", "unsafe", "display", "none"]
"""safe: same value to rounding wherever the old one was finite; unsafe: may change a finite value;
display: shown, never written; none: no source form (the finding exists at run time only)."""

FAMILIES: dict[int, str] = {
    0: "the checker's own comments",
    1: "formulas with a stable form",
    2: "exponentials and logs of raw outputs",
    3: "epsilons and divisions",
    4: "masks",
    5: "gradients, clipping and AMP order",
    6: "the right API",
    7: "statistics and linear algebra",
    8: "state and hidden faults",
    9: "audit notes, off by default",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One hazard: its code and name, what it is, what mends it, and how far a fix may be trusted."""

    code: str
    name: str
    summary: str
    remedy: str
    fix: FixSafety
    default: bool = True

    @property
    def family(self) -> int:
        """First digit of the code."""
        return int(self.code[2])


_ALL: tuple[Finding, ...] = (
    Finding("NS001", "unused-ignore", "a `# stability: ignore[...]` comment that silences nothing", "remove the comment", "safe"),
    Finding(
        "NS101",
        "log-softmax",
        "log of a softmax: the small probabilities underflow to 0 and their log is -inf",
        "use log_softmax on the logits",
        "safe",
    ),
    Finding(
        "NS102",
        "log-sigmoid",
        "log of a sigmoid: underflows to log(0) for large negative (or positive) inputs",
        "use logsigmoid(x), and logsigmoid(-x) for log(1 - sigmoid(x))",
        "safe",
    ),
    Finding("NS103", "hand-softplus", "log(1 + exp(x)) overflows for large x", "use softplus", "safe"),
    Finding("NS104", "hand-sigmoid", "1 / (1 + exp(-x)) has a NaN gradient once exp(-x) overflows", "use sigmoid", "safe"),
    Finding(
        "NS105",
        "hand-softmax",
        "exp(x) / exp(x).sum() overflows, and is 0 / 0 when all entries underflow",
        "use softmax with an explicit dim",
        "safe",
    ),
    Finding("NS106", "hand-logsumexp", "log of a sum of exponentials overflows, and is log(0) when all entries underflow", "use logsumexp", "safe"),
    Finding("NS107", "log-exp", "log(exp(x)) overflows or underflows on the way to x", "use x itself", "safe"),
    Finding("NS108", "log1p-expm1", "log(1 + x) and exp(x) - 1 cancel near 0", "use log1p and expm1", "safe"),
    Finding(
        "NS109", "tanh-logdet", "log(1 - tanh(x)^2) is log(0) from |x| of about 9 in float32", "use 2 * (log(2) - x - softplus(-2 * x))", "unsafe"
    ),
    Finding(
        "NS110",
        "sumsq-sqrt",
        "the square root of a sum of squares has an infinite derivative at 0, which becomes NaN",
        "use torch.linalg.vector_norm, or std for a variance: their gradient at 0 is finite",
        "safe",
    ),
    Finding(
        "NS111",
        "atanh-logit",
        "0.5 * log((1 + x) / (1 - x)) and log(x / (1 - x)) divide by zero at the ends",
        "use atanh, or logit with eps",
        "unsafe",
    ),
    Finding("NS112", "log-prod", "the log of a product underflows long before the sum of logs does", "sum the logs", "unsafe"),
    Finding(
        "NS113",
        "entropy",
        "p * log(p) is 0 * -inf = NaN where p underflows",
        "use p * log_softmax(logits), or the entropy of a distribution made from logits",
        "unsafe",
    ),
    Finding(
        "NS201",
        "exp-logvar",
        "exp of what nothing bounds (a raw log-variance, log-scale, rate or ratio) overflows as training pushes it up",
        "bound its argument once, where it is made, with a bound whose gradient returns",
        "unsafe",
    ),
    Finding(
        "NS202", "exp-scale", "exp of a raw network output overflows", "bound the argument (tanh or clamp) before the exp", "display", default=False
    ),
    Finding(
        "NS203",
        "exp-then-clamp",
        "exp(x).clamp(max=c) is finite but its gradient is 0 * inf = NaN",
        "clamp the argument at log(c) before the exp",
        "safe",
    ),
    Finding(
        "NS204",
        "exp-logratio",
        "exp of a difference of log-probabilities overflows when the policies part",
        "clamp the log-ratio before the exp",
        "display",
        default=False,
    ),
    Finding(
        "NS205",
        "log-nonpositive",
        "log of a value that can reach 0 or below",
        "keep the logarithm itself as the parameter, or bound the argument from below",
        "display",
        default=False,
    ),
    Finding(
        "NS206",
        "power-overflow",
        "a power whose result exceeds the dtype's largest number, or whose derivative is infinite at 0",
        "bound the base or the exponent",
        "none",
    ),
    Finding("NS301", "eps-zero-half", "an epsilon that is 0 in float16 guards nothing there", "use at least torch.finfo(x.dtype).tiny", "safe"),
    Finding(
        "NS302", "one-minus-eps", "1 - eps rounds to 1, so the clamp does not keep the value below 1", "use 1 - torch.finfo(x.dtype).eps", "safe"
    ),
    Finding(
        "NS303",
        "div-norm",
        "division by a norm or by another value that can be 0",
        "use torch.nn.functional.normalize, or a guard of the dtype",
        "unsafe",
    ),
    Finding(
        "NS304",
        "division-by-zero",
        "a divisor that is exactly 0, or so small that the quotient overflows",
        "guard the divisor with a floor of its dtype, or restructure so that nothing is divided",
        "none",
    ),
    Finding(
        "NS401",
        "mask-neg-inf",
        "a row whose every entry is masked with -inf is NaN after softmax",
        "give rows without a key zeros: fill with finfo(dtype).min and zero the row after the softmax",
        "unsafe",
    ),
    Finding(
        "NS402", "mask-half-overflow", "a fill constant beyond +-65504 raises or becomes -inf in float16", "use torch.finfo(x.dtype).min", "unsafe"
    ),
    Finding("NS403", "mask-mul-inf", "mask * -inf is NaN where the mask is 0", "use masked_fill", "unsafe", default=False),
    Finding("NS404", "masked-write-lost", "x[mask][...] = v writes into a copy", "write through one subscript", "display"),
    Finding(
        "NS501",
        "no-clip",
        "backward() then step() with no gradient clipping between",
        "clip the optimizer's own parameters before the step",
        "unsafe",
        default=False,
    ),
    Finding(
        "NS502",
        "clip-without-unscale",
        "gradients are clipped while they are still multiplied by the loss scale",
        "call scaler.unscale_(optimizer) before clipping",
        "unsafe",
    ),
    Finding(
        "NS503",
        "clip-order",
        "clipping happens after the step or before backward, where it does nothing",
        "clip between backward() and step()",
        "display",
    ),
    Finding("NS504", "backward-in-autocast", "backward() inside the autocast block", "leave the autocast block before backward()", "display"),
    Finding(
        "NS505",
        "autocast-no-scaler",
        "float16 autocast without a GradScaler: small gradients underflow to 0",
        "scale the loss with torch.amp.GradScaler",
        "display",
    ),
    Finding(
        "NS506",
        "nonfinite-gradient",
        "a gradient holds NaN or Inf when the optimizer is about to step",
        "mend the operation named as its origin; until then the step is skipped",
        "none",
    ),
    Finding(
        "NS507",
        "exploding-gradient",
        "the gradient norm is above its threshold",
        "clip the gradient, lower the learning rate, or normalise the layer that amplifies it",
        "none",
    ),
    Finding(
        "NS508",
        "nonfinite-update",
        "the optimizer's own update holds NaN or Inf although the gradient was finite",
        "check the learning rate, the optimizer's eps in this dtype and its state",
        "none",
    ),
    Finding("NS509", "nonfinite-loss", "backward was called on a loss that is NaN or Inf", "mend the operation named as its origin", "none"),
    Finding(
        "NS510",
        "loss-spike",
        "the loss jumped to many times its recent level",
        "lower the learning rate, clip the gradient or look at the batch",
        "none",
    ),
    Finding(
        "NS511",
        "zero-gradient",
        "every gradient is exactly 0: the step cannot learn",
        "look for a detached graph, dead units or an underflowing loss",
        "none",
    ),
    Finding(
        "NS512",
        "learning-rate",
        "the learning rate is not finite, or so large that updates outgrow the parameters",
        "lower the learning rate or add warm-up",
        "none",
    ),
    Finding(
        "NS513",
        "loss-scale",
        "a GradScaler's scale is infinite, NaN or 0: every step is skipped from then on",
        "begin with a smaller scale; look for what is not finite in every batch, which halves the scale at each step",
        "none",
    ),
    Finding("NS601", "amp-api", "torch.cuda.amp is deprecated", "use torch.amp", "safe"),
    Finding(
        "NS602",
        "bce-on-probabilities",
        "binary cross entropy on a sigmoid's output saturates",
        "use binary_cross_entropy_with_logits on the logits",
        "safe",
    ),
    Finding("NS603", "probs-distribution", "a distribution built from softmax probabilities loses the small ones", "pass logits=", "safe"),
    Finding(
        "NS604",
        "loss-overflow",
        "a loss function's own arithmetic overflows or meets log(0)",
        "use the form on logits, or keep predictions and targets inside the loss's domain",
        "none",
    ),
    Finding(
        "NS605",
        "domain-edge",
        "an inverse trigonometric or hyperbolic function at or beyond the end of its domain",
        "keep the argument strictly inside the domain by an amount that its dtype can represent",
        "none",
    ),
    Finding("NS701", "naive-variance", "E[x^2] - E[x]^2 cancels and can be negative", "use var", "unsafe"),
    Finding("NS702", "inverse-matmul", "inverse(A) @ b loses accuracy where solve(A, b) does not", "use torch.linalg.solve", "display"),
    Finding("NS703", "log-abs-det", "the determinant overflows or underflows before its log is taken", "use torch.linalg.slogdet", "safe"),
    Finding(
        "NS704",
        "root-at-zero",
        "a square root, norm or standard deviation at exactly 0 has an infinite or undefined derivative",
        "use a form whose derivative at 0 is finite, or keep the argument away from 0",
        "none",
    ),
    Finding(
        "NS705",
        "singular-matrix",
        "a matrix that is singular or not positive definite to the dtype's precision",
        "add jitter to the diagonal in proportion to its scale, or work in float64",
        "none",
    ),
    Finding(
        "NS706",
        "degenerate-spectrum",
        "equal eigenvalues or singular values: the decomposition's derivative is undefined",
        "perturb the matrix, or differentiate a function that does not need the vectors",
        "none",
    ),
    Finding(
        "NS707",
        "single-sample-statistic",
        "a variance or standard deviation of one sample is 0 / 0",
        "use correction=0, or skip groups of one",
        "none",
    ),
    Finding(
        "NS708",
        "zero-product-gradient",
        "the gradient of a product that holds a zero divides by it",
        "sum logs, or compute the product without differentiating through the zero",
        "none",
    ),
    Finding(
        "NS709",
        "invalid-distribution",
        "a distribution's parameters left their domain: scale 0, probability beyond [0, 1], or no mass",
        "parametrise by logits or log-scale with a bound",
        "none",
    ),
    Finding("NS801", "uninitialised-parameter", "a parameter made by torch.empty and never filled", "initialise it with torch.nn.init", "display"),
    Finding("NS802", "hidden-nan", "NaN is replaced or skipped over rather than prevented", "find the operation that makes it", "display"),
    Finding("NS803", "nonfinite-data", "the data itself holds NaN or Inf", "clean or mask the named entries before they reach the model", "none"),
    Finding(
        "NS804",
        "nonfinite-parameter",
        "a parameter or buffer is NaN or Inf",
        "load an earlier checkpoint; look for a step or an in-place write that was not guarded",
        "none",
    ),
    Finding(
        "NS805",
        "nonfinite-result",
        "an operation turned finite inputs into NaN or Inf",
        "bound its inputs, or use a form of it that cannot overflow",
        "none",
    ),
    Finding(
        "NS806",
        "exploding-state",
        "a recurrent or accumulated state grows without bound",
        "bound the state's growth: normalise it, use a gate, or shorten the recursion",
        "none",
    ),
    Finding(
        "NS807",
        "nonfinite-state",
        "an optimizer's state holds NaN or Inf that no step put there: every later step would spoil its parameters",
        "load an earlier checkpoint of the optimizer, or none; look for what else writes into its state",
        "none",
    ),
    Finding(
        "NS808",
        "nonfinite-buffer",
        "a forward pass turned a buffer (the running statistics of a normalisation layer) into NaN or Inf",
        "mend the operation or the batch named as its origin; the buffer was put back as it was after the last good step",
        "none",
    ),
    Finding(
        "NS809",
        "transient-fault",
        "the same computation on the same numbers gave two results, one of them NaN or Inf",
        "look for a race or uninitialised memory; test the machine's memory and accelerator; set torch.use_deterministic_algorithms(True)",
        "none",
    ),
    Finding(
        "NS901",
        "audit-epsilon",
        "audit E1, E3: an added epsilon that is harmless as written",
        "keep it; torch.nn.functional.normalize says the same more plainly",
        "display",
        default=False,
    ),
    Finding(
        "NS902",
        "audit-init",
        "audit I1-I8: layers without an explicit initialisation",
        "keep torch's own initialisation unless the variance through depth is measured to be wrong",
        "display",
        default=False,
    ),
    Finding(
        "NS903",
        "audit-causal-mask",
        "audit M1: -inf in a causal mask, where the diagonal always stays",
        "keep it, or use scaled_dot_product_attention; a large negative constant is worse",
        "display",
        default=False,
    ),
    Finding(
        "NS904",
        "audit-softmax",
        "audit S1: a softmax without a subtracted maximum",
        "keep it: torch subtracts the maximum itself",
        "display",
        default=False,
    ),
    Finding(
        "NS905",
        "audit-scale",
        "audit Q1: the square root of a size that could be 0",
        "refuse a configuration with more heads than features",
        "display",
        default=False,
    ),
    Finding(
        "NS906",
        "audit-sqrt-step",
        "audit Q2: the square root of a difference of times that can be negative",
        "validate that the time grid increases",
        "display",
        default=False,
    ),
)

FINDINGS: dict[str, Finding] = {finding.code: finding for finding in _ALL}
"""Every finding by its code, in the order of the codes."""


def finding(code_or_name: str) -> Finding:
    """The finding with this code (`NS201`) or name (`exp-logvar`).

    Raises:
        KeyError: nothing is known by that code or name; the message lists the closest.
    """
    if code_or_name in FINDINGS:
        return FINDINGS[code_or_name]
    for candidate in _ALL:
        if candidate.name == code_or_name:
            return candidate
    from difflib import get_close_matches  # only on the way to an error

    near = get_close_matches(code_or_name, [*FINDINGS, *(f.name for f in _ALL)], n=3)
    raise KeyError(f"no finding is called {code_or_name!r}; closest: {', '.join(near) or 'none'}; `python -m patches list` shows all")
