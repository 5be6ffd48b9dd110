"""The files of plans: named so that those for several devices, GPUs and precisions lie in one folder."""

from __future__ import annotations


def plan_name(engine: str, device: str, precision: str, *, capability: str = "", hardware: str = "this") -> str:
    """The file of a plan.  A plan of TensorRT for RTX is portable, one of TensorRT is of a compute capability."""
    if device == "tensorrt-rtx" or not capability:
        return f"{engine}.{device}.{precision}.plan"
    kind = "ampere" if hardware == "ampere" else f"sm{capability.replace('.', '')}"
    return f"{engine}.{device}.{kind}.{precision}.plan"


def plan_names(engine: str, device: str, precision: str, capability: str) -> tuple[str, ...]:
    """The files that a plan for this GPU may have, the one made for it first."""
    kinds = (plan_name(engine, device, precision, capability=capability, hardware=kind) for kind in ("this", "ampere"))
    return tuple(dict.fromkeys(kinds))
