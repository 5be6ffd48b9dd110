"""Running a graph that is in memory on the processor, wherever its weights lie: what derived forms are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from facesdk.engine import Array, Arrays, run_error

_FOLDER = "session.model_external_initializers_file_folder_path"


def run(model: onnx.ModelProto, folder: Path, arrays: Arrays) -> dict[str, Array]:
    """The outputs of a graph on the processor; `folder` holds the weights that do not lie in it.

    Raises EngineError where it cannot run on `arrays`.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry(_FOLDER, str(folder))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    fed = {name: np.asarray(array) for name, array in arrays.items()}
    try:
        return dict(zip(names, session.run(names, fed), strict=True))
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        raise run_error(f"ONNX Runtime {ort.__version__} CPUExecutionProvider", error) from error
