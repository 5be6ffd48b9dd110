"""The guard behind networks: results that are not numbers are an error, which says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import Engine, Precision
from .errors import EngineError

_AGAIN = "export it again, or pull its bundle again: facesdk models pull NAME --force"


def not_finite(outputs: Mapping[str, Any]) -> list[str]:
    """Names of the outputs that hold NaN or infinite values."""
    return [name for name, values in outputs.items() if not np.isfinite(values).all()]


def checked(engine: Engine, **arrays: npt.NDArray[Any]) -> dict[str, Any]:
    """The outputs of an engine that computes in fp32; raises EngineError where they are not finite."""
    outputs = engine(**arrays)
    check_finite(f"engine {engine.path.name}", engine, outputs, "fp32")
    return outputs


def check_finite(what: str, engine: Engine, outputs: Mapping[str, Any], precision: Precision) -> None:
    """Raise EngineError where outputs are not finite.

    what  the engine's name for the message.   precision  it was opened in.
    """
    broken = not_finite(outputs)
    if not broken:
        return
    cause = "an input far from what the network knows, a guidance far too great, or a damaged file"
    if precision != "fp32":
        cause = f"values that {precision} cannot hold, {cause}"
    raise EngineError(
        f"{what} gave NaN or infinite values in {', '.join(broken)}, in {precision} on device {engine.device}",
        cause=cause,
        remedy=_remedy(engine.device, precision),
    )


def _remedy(device: str, precision: Precision) -> str:
    if precision != "fp32":
        return f'run it in fp32 on the same device: device="{device}", precision="fp32"'
    if device != "cpu":
        return f'run it on the CPU: device="cpu"; if it fails there too, {_AGAIN}'
    return _AGAIN
