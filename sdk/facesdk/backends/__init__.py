"""Backends: what runs a graph.  A device asked for by name is used or refused; nothing falls back in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from ..card import Card
from ..engine import Backend, Device, Precision
from ..errors import UsageError, one_of


@dataclasses.dataclass(frozen=True)
class Source:
    """A graph to open: its file, files of the same graph written for one device, and how to open them."""

    path: Path
    forms: Mapping[str, Path]
    threads: int | None
    precision: Precision = "fp32"

    def path_for(self, device: str) -> Path:
        return self.forms.get(device, self.path)


def open_backend(source: Source, card: Card, device: Device) -> tuple[Backend, str]:
    """The backend for `device`, and why it was taken."""
    for what, value, kind in (("device", device, Device), ("precision", source.precision, Precision)):
        if value not in get_args(kind):
            raise one_of(what, value, get_args(kind))
    if source.precision == "bf16" and device != "openvino":
        raise UsageError(
            f"precision bf16 does not run on device {device}",
            cause="ONNX Runtime has no bf16 kernels for processors",
            remedy='ask for device="openvino"; install it with: pip install "facesdk[openvino]"',
        )
    if device == "auto":
        from .choice import choose

        return choose(source, card)
    return open_named(source, device), "asked for"


def open_named(source: Source, device: str) -> Backend:
    """The backend called `device`; raises ProviderUnavailable where it cannot run here."""
    path = source.path_for(device)
    if device == "openvino":
        from .openvino import OpenVino

        return OpenVino(path, source.precision, source.threads)
    from .onnxruntime import OnnxRuntime

    return OnnxRuntime(path, device, source.threads)
