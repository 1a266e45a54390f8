"""Schema 1 of the stability config: which values exist, what they mean and what is refused.

Values live in `releases/`, one data file per release; this module holds none of them except
neutral defaults of secondary parameters that a user may leave out (a percentile's history, say).
Every model is frozen, refuses unknown keys, converts nothing (a bool is no number, a string is no
number) and refuses NaN and Inf.

Extending schema 1 while config 1.0.0 is a draft: a field added here needs a default that gives
earlier releases the behaviour they had before the field existed, because released files never change.
Once a released config has schema 1, a change that old documents cannot express is schema 2: a new
module beside this one and a pure function in `migrate.py`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from latent_drift.config.frozen import FrozenMapping, thaw
from latent_drift.errors import UsageError

SCHEMA_VERSION = 1

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Names of the real floating dtypes that a config has values for."""

Positive = Annotated[float, Field(gt=0.0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]  # a TOML or JSON list is the same value


class Section(BaseModel):
    """What every part of a config has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class DtypePrecision(Section):
    """Bounds of one dtype. Derivations are held by tests from release 1.0.0 on."""

    division_eps: Positive
    """Smallest magnitude of a divisor: normal, with a finite reciprocal."""
    log_floor: Positive
    """Smallest argument of a logarithm: normal, so that the logarithm and its derivative are finite."""
    exp_max: Positive
    """Largest argument of exp: exp(exp_max) is finite in the dtype."""
    exp_min: Annotated[float, Field(lt=0.0)]
    """Argument of exp below which the result is subnormal or 0 (legal: nothing is bounded there by default)."""
    mask_value: Annotated[float, Field(lt=0.0)]
    """What a masked score is filled with: the lowest finite number."""
    log_variance_min: Annotated[float, Field(lt=0.0)]
    """Smallest log-variance a model may make."""
    log_variance_max: Positive
    """Largest log-variance a model may make."""


class Precision(Section):
    """Bounds by dtype: `precision["float16"]`, `precision["torch.float16"]`, `precision[torch.float16]`."""

    float16: DtypePrecision
    bfloat16: DtypePrecision
    float32: DtypePrecision
    float64: DtypePrecision

    def __getitem__(self, dtype: object) -> DtypePrecision:
        """The bounds of a dtype given by name or as the torch dtype itself.

        Raises:
            UsageError: there are no bounds for it (an integer, complex or 8-bit dtype).
        """
        bounds: DtypePrecision = getattr(self, dtype_name(dtype))
        return bounds

    def __contains__(self, dtype: object) -> bool:
        return str(dtype).removeprefix("torch.") in DTYPES

    def keys(self) -> tuple[str, ...]:
        """Names of the dtypes."""
        return DTYPES

    def items(self) -> Iterator[tuple[str, DtypePrecision]]:
        """Pairs of dtype name and bounds."""
        return ((name, self[name]) for name in DTYPES)


def dtype_name(dtype: object) -> str:
    """The name that configs use for a dtype: `float16` for "float16", "torch.float16" and `torch.float16` itself.

    Raises:
        UsageError: a config has no values for that dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"a stability config has values for {', '.join(DTYPES)}; got {dtype!r}. Convert the tensor first, or leave it alone.")
    return name


class Exp(Section):
    """exp, exp2, expm1, sinh, cosh and powers: what overflows."""

    bound: Literal["dtype"] | Positive
    """"dtype" (each dtype's own limit), or a tighter absolute bound of the argument: the smaller of both rules."""
    gradient_outside: Literal["zero", "straight_through"]
    """Beyond the bound: no gradient (as a clamp has), or that at the bound (so that the argument can come back)."""


class Pole(Section):
    """Functions with a pole or an infinite derivative at an edge: log, sqrt, division."""

    bound_forward: bool
    """Whether the result itself is bounded; a deliberate log(0) = -inf is legal otherwise."""
    gradient: Literal["neutralise", "leave"]
    """What becomes of a gradient that would be NaN or Inf."""


class Softmax(Section):
    """softmax, log_softmax and attention."""

    empty_rows: Literal["zeros", "uniform", "leave"]
    """The result of a row with no finite entry."""
    upcast: bool
    """Whether half-precision rows are computed in float32 where torch does not already do so."""


class Losses(Section):
    """Loss functions."""

    nonfinite_elements: Literal["bound", "omit", "leave"]
    """A NaN or Inf element of a loss: bounded to the dtype's range, left out of the reduction, or left."""


class Linalg(Section):
    """Decompositions and solves."""

    jitter: Literal["none", "smallest"]
    """Whether a matrix that cannot be decomposed gets the smallest multiple of the identity that lets it."""
    jitter_growth: Annotated[float, Field(gt=1.0)] = 10.0
    """Factor from one attempt to the next; the first adds the dtype's eps times the mean of the diagonal."""
    jitter_attempts: Count = 5
    """Attempts before the original error is raised after all."""


class ClipNone(Section):
    """No clipping."""

    kind: Literal["none"]


class ClipNorm(Section):
    """Scale all gradients so that their joint norm is at most `max_norm`."""

    kind: Literal["norm"]
    max_norm: Positive
    norm_type: Annotated[float, Field(ge=1.0)] | Literal["inf"] = 2.0
    """Order of the norm; "inf" is the largest magnitude."""


class ClipValue(Section):
    """Bound each entry of each gradient to [-max_value, max_value]."""

    kind: Literal["value"]
    max_value: Positive


class ClipAdaptivePercentile(Section):
    """Norm clipping at a percentile of the run's own history of global norms."""

    kind: Literal["adaptive_percentile"]
    percentile: Annotated[float, Field(gt=0.0, le=100.0)] = 95.0
    """In percent of the finite norms remembered (95 is the audit's own default)."""
    history: Annotated[int, Field(ge=2)] = 200
    """Steps remembered."""
    warmup: Count = 20
    """Steps observed before the first clipping."""
    max_norm: Positive | None = None
    """Ceiling that holds from the first step on, so that a run that explodes at once has a bound too."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> ClipAdaptivePercentile:
        return _require_warmup(self)


class ClipZScore(Section):
    """Norm clipping at mean + threshold * std of the run's own history of global norms."""

    kind: Literal["zscore"]
    threshold: Positive = 3.0
    """Standard deviations above the mean: of norms that scatter normally, one step in 740 lies further out."""
    history: Annotated[int, Field(ge=2)] = 200
    """Steps remembered."""
    warmup: Annotated[int, Field(ge=2)] = 20
    """Steps observed before the first clipping."""
    max_norm: Positive | None = None
    """Ceiling that holds from the first step on."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> ClipZScore:
        return _require_warmup(self)


WindowedClip = TypeVar("WindowedClip", ClipAdaptivePercentile, ClipZScore)


def _require_warmup(clip: WindowedClip) -> WindowedClip:
    if clip.warmup > clip.history:
        raise ValueError(f"warmup ({clip.warmup}) cannot exceed history ({clip.history}): it would never end")
    return clip


class ClipAgc(Section):
    """Adaptive gradient clipping: each unit's gradient is bounded in proportion to its weight (Brock et al. 2021, arXiv:2102.06171)."""

    kind: Literal["agc"]
    clipping: Positive = 0.01
    """Largest ratio of a unit's gradient norm to its parameter norm (0.01 in the paper, for batches of 4,096)."""
    eps: Positive = 1e-3
    """Floor of the parameter norm, so that units at zero can still learn (1e-3 in the paper)."""


Clip = Annotated[ClipNone | ClipNorm | ClipValue | ClipAdaptivePercentile | ClipZScore | ClipAgc, Field(discriminator="kind")]


class UpdateBoundNone(Section):
    """The optimizer's update is left alone."""

    kind: Literal["none"]


class UpdateBoundRatio(Section):
    """A parameter's update is scaled so that its norm is at most `max_ratio` times the parameter's."""

    kind: Literal["ratio"]
    max_ratio: Positive
    eps: Positive = 1e-3
    """Floor of the parameter norm, so that parameters at zero can still move."""


UpdateBound = Annotated[UpdateBoundNone | UpdateBoundRatio, Field(discriminator="kind")]


class Gradient(Section):
    """What happens to gradients before an optimizer's step."""

    clip: Clip
    nonfinite: Literal["skip", "zero", "raise", "record"]
    """A gradient with NaN or Inf: skip the step, zero the bad entries, raise, or only record it."""
    default_max_norm: Positive
    """Norm to which the toolbox's clipping functions clip where their caller names none."""
    default_max_value: Positive
    """The same for clipping by value."""
    warn_norm: Positive
    """Global norm from which a step counts as a warning sign."""
    spike_ratio: Annotated[float, Field(gt=1.0)]
    """Ratio of a loss to the median of its recent past from which it counts as a spike."""
    max_consecutive_skips: Count
    """Skipped steps in a row after which the run gives up instead of spinning."""
    zero_after_skips: Annotated[int, Field(ge=0)] = 3
    """Failed steps in a row after which the bad elements are zeroed instead of the step being skipped, where at least half of all elements are
    good (0: never): else a fault that is there in every batch would let nothing be learnt."""
    online_max_norm: Positive
    """Clipping norm of online (continual) updates, tighter than training's."""
    update_bound: UpdateBound
    """Bound of the update itself: AdamW's step does not depend on the gradient's scale, so clipping alone does not bound it."""


class Recovery(Section):
    """Returning to the last good state."""

    rollback: bool
    """Off by default: it costs one copy of the training state."""
    snapshot_every: Count
    """Good steps between snapshots."""
    snapshot_device: Literal["device", "host"]
    """Where the copy is kept."""
    rollback_after: Count
    """Bad steps in a row that cause a rollback."""
    lr_backoff: Annotated[float, Field(gt=0.0, le=1.0)]
    """Factor on the learning rate after a rollback."""
    lr_recovery_steps: Annotated[int, Field(ge=0)]
    """Good steps over which the learning rate returns to its own value."""
    retries: Count
    """Rollbacks to the same snapshot before the run gives up."""
    nonfinite_lr: Literal["last", "skip"] = "last"
    """A learning rate that is NaN or infinite: the step uses the group's last usable one, or is skipped."""
    negative_lr: Literal["leave", "zero"] = "leave"
    """A learning rate below 0 (a schedule run past its end climbs the loss): left, or taken as 0."""
    hold_counters: bool = True
    """Whether a learning-rate schedule and an AveragedModel wait where every step since their last call was skipped."""
    replay: bool = True
    """Whether a failing step's forward pass is done once more, to tell a fault in the numbers from flaky hardware or a race."""
    repeat_with_eps: bool = True
    """Whether an update that divided by 0 (an optimizer's eps that is 0 in half precision) is put back and done again with an eps that is not."""
    nonfinite_parameters: Literal["zero", "leave"] = "zero"
    """Elements of parameters or optimizer state that something outside of any step has made NaN or infinite, with no good state to return to: set
    to 0 where most of the tensor is left, or left alone. Both are reported."""


Check = Literal["loss", "gradient", "update", "parameter", "data", "spike", "dead"]


class Anomaly(Section):
    """What is looked for, and what is said about it."""

    checks: Annotated[tuple[Check, ...], Field(strict=False)]
    """Which checks run."""
    action: Literal["record", "warn", "raise"]
    """What an anomaly that could not be repaired does."""
    watch_steps: Annotated[int, Field(ge=0)]
    """Steps that may be watched operation by operation to find where a bad value was born (0: never)."""
    max_events: Count
    """Events kept in the log; later ones are counted."""
    allow: Names
    """Places where a non-finite value is meant: "file.py:line", "file.py", a module path, or an operation, with * as a wildcard."""
    dead_steps: Count
    """Steps in a row with an exactly zero gradient after which a parameter counts as dead."""
    history_steps: Count = 64
    """The latest steps of each optimizer that are kept in full: what trends are read from."""


class Amp(Section):
    """Automatic mixed precision."""

    init_scale: Positive
    growth_factor: Annotated[float, Field(gt=1.0)]
    backoff_factor: Fraction
    growth_interval: Count
    min_scale: Positive
    """Floor of the loss scale."""
    float32_ops: Names
    """Operations computed in float32 under autocast."""

    @model_validator(mode="after")
    def _floor_below_start(self) -> Amp:
        if self.min_scale > self.init_scale:
            raise ValueError(f"min_scale ({self.min_scale}) cannot exceed init_scale ({self.init_scale})")
        return self


class Initialization(Section):
    """Gains per role of a layer, for the model package."""

    linear: Positive
    """A linear layer with nothing nonlinear behind it."""
    relu: Positive
    """A layer before a ReLU."""
    silu: Positive
    """A layer before a SiLU."""
    tanh: Positive
    """A layer before a tanh."""
    attention: Positive
    """Query, key, value and output projections."""
    vector_field: Positive
    """Hidden layers of a drift or diffusion network."""
    vector_field_output: Positive
    """The last layer of a drift or diffusion network."""
    embedding_std: Positive
    """Standard deviation of embeddings."""
    residual_depth_power: Annotated[float, Field(ge=-1.0, le=0.0)]
    """A residual branch is scaled by depth to this power."""


class Latent(Section):
    """Bounds of what latent-variable models exponentiate. Log-variances are bounded per dtype, in `precision`."""

    bound: Literal["returning", "clamp"]
    """A bound whose gradient returns (two softplus), or a plain clamp (zero gradient outside)."""
    log_std_min: Annotated[float, Field(lt=0.0)]
    log_std_max: Positive
    scale_min: Positive
    scale_max: Positive
    flow_log_scale: Literal["none"] | Positive
    """Largest total log-scale of a normalising flow per dimension, over all its layers; "none": not bounded."""


def _iso_date(value: Any) -> Any:
    """A date from its ISO text, as JSON has it; anything else is left to the validator."""
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"expected a date such as 2026-11-22, got {value!r}") from None
    return value


def _pep440(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion:
        raise ValueError("should be a PEP 440 version") from None
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Values(Section):
    """The numerics themselves, without the identity of who released them."""

    act: bool
    """Whether anything is altered at all; False only records."""
    repair_raising: bool
    """Whether an operation that raises for a numerical reason gets the smallest repair that lets it go on."""
    precision: Precision
    exp: Exp
    log: Pole
    sqrt: Pole
    division: Pole
    softmax: Softmax
    losses: Losses
    linalg: Linalg
    gradient: Gradient
    recovery: Recovery
    anomaly: Anomaly
    amp: Amp
    initialization: Initialization
    latent: Latent


class StabilityConfig(Values):
    """One resolved stability config: the values that decide a run's numerics, and where they come from.

    Built by `latent_drift.config.load`; equality is equality of all fields.
    """

    schema_version: Literal[1]
    """Shape of the document."""
    version: Annotated[str, AfterValidator(_pep440)]
    """PEP 440 version of the values."""
    title: str
    released: Annotated[datetime.date | None, BeforeValidator(_iso_date)] = None
    """Date of release; None for a draft, whose hash still moves."""
    sha256: Sha256
    """Hash of the release the values come from (canonical JSON of its data file without this field)."""
    profile: str
    """The profile that was resolved."""
    profiles: FrozenMapping
    """The release's profiles: name -> dotted path -> value."""
    overrides: FrozenMapping
    """What differs from release and profile: dotted path -> value."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("schema_version", "version", "title", "released", "sha256", "profile", "profiles", "overrides")

    @model_validator(mode="after")
    def _profile_is_known(self) -> StabilityConfig:
        if self.profile not in self.profiles:
            raise ValueError(f"profile {self.profile!r} is none of its profiles, {', '.join(self.profiles)}")
        return self

    @property
    def draft(self) -> bool:
        """Whether the release has no date yet."""
        return self.released is None

    @property
    def identity(self) -> str:
        """One line that names these numerics, e.g. `1.0.0+draft sha256:0123abcd profile=train`; overridden values add their digest."""
        draft = "+draft" if self.draft else ""
        values = f" overrides={len(self.overrides)} values:{self.digest[:8]}" if self.overrides else ""
        return f"{self.version}{draft} sha256:{self.sha256[:8]} profile={self.profile}{values}"

    @cached_property
    def digest(self) -> str:
        """sha256 of the resolved values: equal digests are equal numerics, whatever release or overrides they come from."""
        return canonical_sha256(self.values())

    def exp_bound(self, dtype: object) -> float:
        """The largest argument of exp in a dtype: its own limit, or `exp.bound` where that is tighter."""
        limit = self.precision[dtype].exp_max
        return limit if self.exp.bound == "dtype" else min(limit, self.exp.bound)

    def values(self) -> dict[str, Any]:
        """The resolved values as plain nested data, without the identity."""
        return {name: value for name, value in self.document().items() if name not in self.IDENTITY}

    def record(self) -> dict[str, Any]:
        """Version, hash, profile and overrides as plain data: `load` takes it back while that release is installed, and refuses another hash."""
        return {name: thaw(getattr(self, name)) for name in ("schema_version", "version", "sha256", "profile", "overrides")}

    def document(self) -> dict[str, Any]:
        """The whole config as plain data (dict, list, str, int, float, bool, None): what a checkpoint carries and any installation loads."""
        plain = thaw(self.model_dump(mode="json"))
        return {name: plain[name] for name in (*self.IDENTITY, *Values.model_fields)}

    def __str__(self) -> str:
        return self.identity

    def __hash__(self) -> int:
        return hash((self.version, self.sha256, self.digest))


def canonical_json(document: Any) -> str:
    """The one JSON text of a document: sorted keys, no spaces, shortest round-trip numbers, ASCII, no NaN or Inf."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_sha256(document: Any) -> str:
    """Hex sha256 of `canonical_json(document)`."""
    return hashlib.sha256(canonical_json(document).encode("ascii")).hexdigest()
