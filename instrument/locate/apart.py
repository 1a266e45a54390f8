"""What only looks for a cause must not end the script that it looks at: an error of its own is logged, and the script goes on."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from instrument.runtime import StopReplay
from latent_drift.errors import LatentDriftError

_LOG = logging.getLogger(__name__)

P = ParamSpec("P")
S = TypeVar("S")

raises = os.environ.get("LATENT_DRIFT_RAISES_ITS_OWN") == "1"
"""Whether such errors are raised all the same: in the project's own tests, where they are faults to be found."""


def apart(look: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """A method that looks, and gives nothing back."""

    @functools.wraps(look)
    def looked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            look(self, *args, **kwargs)
        except (LatentDriftError, StopReplay):
            raise
        except Exception:  # nothing of the script's runs in it but what is done once more, whose errors are not the script's either
            if raises:
                raise
            _LOG.exception("latent-drift failed while it looked for the cause of a number that is not finite; the script goes on. Please report this")

    return looked
