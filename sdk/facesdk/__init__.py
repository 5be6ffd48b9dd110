"""FaceSDK: faces in photos on ONNX engines.

Names are loaded at first use, so that `import facesdk` costs no more than importing the standard library.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annotation.annotator import AnnotateOptions, Annotation
    from .annotation.geometry import HeadPose
    from .annotation.tracking import TrackOptions
    from .bundle import Bundle
    from .card import Card
    from .engine import Engine
    from .errors import FaceSDKError, NoFaceFound
    from .facade import FaceSDK
    from .face import Face
    from .identity import Identity
    from .image import read_image, write_image
    from .provenance import Provenance
    from .store import Store

_HOMES = {
    "AnnotateOptions": "annotation.annotator",
    "Annotation": "annotation.annotator",
    "Bundle": "bundle",
    "Card": "card",
    "Engine": "engine",
    "Face": "face",
    "FaceSDK": "facade",
    "FaceSDKError": "errors",
    "HeadPose": "annotation.geometry",
    "Identity": "identity",
    "NoFaceFound": "errors",
    "Provenance": "provenance",
    "Store": "store",
    "TrackOptions": "annotation.tracking",
    "read_image": "image",
    "write_image": "image",
}
__all__ = [
    "AnnotateOptions", "Annotation", "Bundle", "Card", "Engine", "Face", "FaceSDK", "FaceSDKError", "HeadPose",
    "Identity", "NoFaceFound", "Provenance", "Store", "TrackOptions", "read_image", "write_image",
]  # fmt: skip

logging.getLogger("facesdk").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'facesdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
