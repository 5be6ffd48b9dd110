"""Backends: what runs a graph.  A device asked for by name is used or refused; nothing falls back in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..card import Card
from ..engine import Backend, Device, Precision, check_place
from ..errors import ModelNotFound, ProviderUnavailable, UsageError

#: devices that run plans
PLANNED = ("tensorrt", "tensorrt-rtx")


@dataclasses.dataclass(frozen=True)
class Source:
    """A graph to open: its file, files of the same graph written for one device, and how to open them.

    openvino   whether device "auto" may take it.   plans  folder of TensorRT plans, that of the file where not given.
    reference  the fp32 file that `path` was derived from; None where that is `path` itself.
    """

    path: Path
    forms: Mapping[str, Path]
    threads: int | None
    precision: Precision = "fp32"
    openvino: bool = True
    plans: Path | None = None
    reference: Path | None = None

    def in_precision(self) -> Source:
        """The source of the file in its precision; raises UsageError where fp16 is asked for and there is no file."""
        if self.precision != "fp16":
            return self
        if "fp16" not in self.forms:
            raise UsageError(
                f"{self.path.name} has no fp16 form",
                cause="fp16 files are derived from fp32 ones, and verified, when a bundle is exported",
                remedy='export the bundle with facesdk export --fp16, or use precision="fp32"',
            )
        forms = {form: path for form, path in self.forms.items() if form.endswith("-fp16")}
        return dataclasses.replace(self, path=self.forms["fp16"], forms=forms, reference=self.path)

    def path_for(self, device: str) -> Path:
        """The form for "<device>-<precision>", else that for the device, else the file itself.

        Both libraries of TensorRT read the form for "tensorrt".
        """
        family = "tensorrt" if device in PLANNED else device
        return self.forms.get(f"{family}-{self.precision}", self.forms.get(family, self.path))


def open_backend(source: Source, card: Card, device: Device) -> tuple[Backend, str]:
    """The backend for `device`, and why it was taken."""
    check_place(device, source.precision)
    if source.precision == "bf16" and device != "openvino":
        raise UsageError(
            f"precision bf16 does not run on device {device}",
            cause="of the backends, OpenVINO alone computes in bf16, on processors",
            remedy='ask for device="openvino"; install it with: pip install openvino',
        )
    if source.precision == "fp16" and device == "openvino":
        raise UsageError(
            "precision fp16 does not run on device openvino",
            cause="OpenVINO computes in fp32 or bf16 on processors",
            remedy='ask for a GPU, as device="cuda", or for precision="bf16"',
        )
    for path in (source.path, *source.forms.values()):
        if not path.is_file():
            raise ModelNotFound(f"{path} does not exist", remedy="check the path, or pull or export the bundle again")
    if device == "auto":
        from .choice import choose

        return choose(source, card)
    return open_named(source, device), "asked for"


def open_named(source: Source, device: str) -> Backend:
    """The backend called `device`; raises ProviderUnavailable where it cannot run here."""
    if device in PLANNED:
        from .planned import open_planned

        return open_planned(source, device)
    path = source.path_for(device)
    if device == "openvino":
        from .openvino import OpenVino

        return OpenVino(path, source.precision, source.threads)
    try:
        from .onnxruntime import OnnxRuntime
    except ImportError as error:
        raise ProviderUnavailable(
            f"device {device!r} cannot be used here",
            cause=f"the onnxruntime package is damaged or missing: {error}",
            remedy="pip install --force-reinstall onnxruntime, then check with: facesdk doctor",
        ) from error

    return OnnxRuntime(path, device, source.threads)
