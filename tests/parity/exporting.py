"""Torch modules exported to ONNX and run there, for the "onnx" way of the cases."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

Arrays = dict[str, np.ndarray]


def onnx_outputs(
    module: Any, inputs: Mapping[str, np.ndarray], output_names: Sequence[str], *, dynamic_batch: bool = False
) -> Arrays:
    """Output name -> array of the module's exported graph on ONNX Runtime (CPU).

    inputs         in the order of `forward`.
    dynamic_batch  whether axis 0 of every input and output is free in the graph; it must be equal in all, and > 1.
    """
    import torch

    from facesdk_engines.attention import has_attention, with_mha
    from facesdk_export.onnx_export import trace

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    with tempfile.TemporaryDirectory(prefix="facesdk-parity-") as folder:
        path = Path(folder) / "graph.onnx"
        trace(module, tensors, output_names, path, {0: "batch"} if dynamic_batch else {})
        model = onnx.load(path, load_external_data=False)
        if has_attention(model):
            path.write_bytes(with_mha(model).SerializeToString())
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(zip(output_names, session.run(list(output_names), dict(inputs)), strict=True))
