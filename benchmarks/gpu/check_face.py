"""`facesdk.kernels.attention` with the GPU arrays of each package that is here: torch, CuPy, cuda-python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from facesdk.cuda.bfloat16 import rounded
from facesdk.kernels import DeviceArray, attention

Array = np.ndarray[Any, Any]
Ways = tuple[Callable[[Array, str], Any], Callable[[Any], Array], Any]


def torch_ways() -> Ways:
    """How torch tensors are made, read back, and the stream that torch is on."""
    torch = importlib.import_module("torch")
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "uint8": torch.uint8}
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    return (
        lambda values, element: torch.from_numpy(values).to("cuda", dtypes[element]),
        lambda tensor: tensor.float().cpu().numpy(),
        stream,
    )


def cupy_ways() -> Ways:
    """The same of CuPy, which has no bfloat16."""
    cupy = importlib.import_module("cupy")
    dtypes = {"fp16": cupy.float16, "fp32": cupy.float32, "uint8": cupy.uint8}
    return lambda values, element: cupy.asarray(values, dtypes[element]), lambda array: cupy.asnumpy(array), None


def bindings_ways() -> Ways:
    """The same of DeviceArray, on cuda-python."""
    importlib.import_module("cuda.bindings.runtime")
    return lambda values, element: DeviceArray.of(values, element), lambda array: array.numpy(), None


def difference(ways: Ways, element: str, kernels: Any = None) -> float:
    """Relative error of a call with everything in it against the same call with NumPy arrays."""
    put, get, stream = ways
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 65, 3, 40), "k": (2, 77, 3, 40), "v": (2, 77, 3, 40), "k2": (2, 4, 3, 40), "v2": (2, 4, 3, 40)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    bias, weight2 = rng.normal(size=(3, 40)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    region, subject = rng.integers(0, 3, (2, 65), np.uint8), rng.integers(0, 3, (2, 77), np.uint8)

    def call(put: Callable[[Array, str], Any], **options: Any) -> Any:
        q, k, v, k2, v2 = (put(values[name], element) for name in shapes)
        return attention(
            q, k, v, second=(k2, v2), weight2=put(weight2, "fp32"), region=put(region, "uint8"),
            subject=put(subject, "uint8"), query_bias=put(bias, element), **options,
        )  # fmt: skip

    got = get(call(put, stream=stream, kernels=kernels)).astype(np.float64)
    narrow: Callable[[Array], Array] = rounded if element == "bf16" else (lambda a: a.astype(np.float16))
    want = call(lambda a, kind: narrow(a).astype(np.float32) if kind == element else a)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def main() -> int:
    wrong = 0
    for name, ways in {"torch": torch_ways, "CuPy": cupy_ways, "cuda-python": bindings_ways}.items():
        try:
            opened = ways()
        except ImportError:
            print(f"{name}: not here")
            continue
        for element, limit in {"fp16": 2e-3, "bf16": 1.5e-2}.items():
            if (name, element) != ("CuPy", "bf16"):
                error = difference(opened, element)
                wrong += not error < limit
                print(f"{name} {element}: relative error {error:.1e}" + ("" if error < limit else "  WRONG"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
