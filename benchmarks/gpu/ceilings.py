"""What this GPU reaches at best, measured: bytes per second of a copy, operations per second of a matrix product."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from facesdk.files import write_text

from .device import Device, open_device

_COPIED = 4 << 30
_SIZE = 8192
_WARM, _COUNTED = 3, 15


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Medians of one run; None where torch is not there to measure with."""

    device: str
    bytes_per_second: float | None
    fp16_flops_per_second: float | None
    bf16_flops_per_second: float | None

    def flops_per_second(self, element: str) -> float | None:
        """Of the matrix product in this dtype."""
        return self.fp16_flops_per_second if element == "fp16" else self.bf16_flops_per_second

    def save(self, path: Path) -> None:
        """Write it for `read`."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ceilings:
        """What `save` wrote; nothing but None where it did not."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls("", None, None, None)


def measure(device: Device, copied: int = _COPIED, size: int = _SIZE) -> Ceilings:
    """Ceilings of a device that torch opened; of any other only its name."""
    torch = getattr(device, "torch", None)
    if torch is None:
        return Ceilings(device.name, None, None, None)
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = _median(device, lambda: target.copy_(source))
    rates = {}
    for element in ("float16", "bfloat16"):
        a, b = (torch.randn(size, size, device="cuda", dtype=getattr(torch, element)) for _ in range(2))
        out = torch.empty_like(a)
        rates[element] = 2 * size**3 / _median(device, lambda a=a, b=b, out=out: torch.matmul(a, b, out=out))
    return Ceilings(device.name, 2 * copied / copy, rates["float16"], rates["bfloat16"])


def _median(device: Device, work: Any) -> float:
    """Seconds."""
    times = [device.milliseconds(work) for _ in range(_WARM + _COUNTED)]
    return statistics.median(times[_WARM:]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    found = measure(open_device())
    found.save(arguments.output)
    if found.bytes_per_second is None:
        print(f"{found.device}: torch is not here, no ceilings are measured")
        return
    print(f"{found.device}: copy {found.bytes_per_second / 1e12:.2f} TB/s read and written, {_SIZE}^3 product "
          f"{(found.fp16_flops_per_second or 0) / 1e12:.0f} TFLOP/s fp16, "
          f"{(found.bf16_flops_per_second or 0) / 1e12:.0f} bf16")  # fmt: skip


if __name__ == "__main__":
    main()
