"""Every error that FaceSDK raises on purpose: fact, cause, and the step that fixes it.

Each class has a stable `code`; docs/errors/<code>.md explains it.  Each also derives from the builtin
that callers would catch without knowing FaceSDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FaceSDKError(Exception):
    """`fact`: what is wrong.  `cause`: why, where known.  `remedy`: the command or change that fixes it."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, *, cause: str = "", remedy: str = "") -> None:
        self.fact, self.cause, self.remedy = fact, cause, remedy
        lines = [fact, f"cause: {cause}" if cause else "", f"remedy: {remedy}" if remedy else ""]
        super().__init__("\n  ".join(line for line in lines if line))

    def as_dict(self) -> dict[str, str]:
        """The error as JSON-ready fields, for `--json` and for logs."""
        return {"code": self.code, "fact": self.fact, "cause": self.cause, "remedy": self.remedy}


class UsageError(FaceSDKError, ValueError):
    """An option or argument has a value that cannot be used."""

    code = "usage"
    exit_code = 2


# -- pictures ---------------------------------------------------------------------------------------------


class ImageError(FaceSDKError, ValueError):
    """A picture cannot be read, or an array is not a picture."""

    code = "image-unreadable"


class ImageTooLarge(ImageError):
    """The header announces more pixels than `max_pixels`; nothing was decoded."""

    code = "image-too-large"


class ImageAnimated(ImageError):
    """The file holds several frames and no frame was chosen."""

    code = "image-animated"


class ImageArrayError(ImageError, TypeError):
    """An array has the wrong dtype or shape to be a picture."""

    code = "image-array"


class NoFaceFound(FaceSDKError, LookupError):
    """`reason` is 'none', 'too-small' or 'too-uncertain'; `best_rejected` is the nearest miss or None."""

    code = "no-face"
    exit_code = 3

    def __init__(self, fact: str, *, reason: str, best_rejected: object = None, remedy: str = "") -> None:
        self.reason, self.best_rejected = reason, best_rejected
        super().__init__(fact, cause=f"reason: {reason}", remedy=remedy)


class EmbeddingSpaceMismatch(FaceSDKError, ValueError):
    """Two identities come from different encoders or preprocessings; their cosine would mean nothing."""

    code = "embedding-space"


# -- engines ----------------------------------------------------------------------------------------------


class EngineError(FaceSDKError, RuntimeError):
    """An engine cannot be opened, or was used after `close()`."""

    code = "engine"


class EngineUnreadable(EngineError):
    """The file is not a graph that the backend can load."""

    code = "engine-unreadable"


class EngineClosed(EngineError):
    """The engine was used after `close()`."""

    code = "engine-closed"


class EngineStale(EngineError):
    """A TensorRT plan was built of another file, with another library, or for another GPU."""

    code = "engine-stale"


class OutOfMemory(EngineError, MemoryError):
    """The GPU has no room for an engine or its arrays."""

    code = "out-of-memory"


class EngineInputError(FaceSDKError, ValueError):
    """An array does not fit the engine's signature: name, shape, dtype or non-finite values."""

    code = "engine-input"


class ProviderUnavailable(FaceSDKError, RuntimeError):
    """The device that was asked for by name cannot be used here."""

    code = "provider-unavailable"
    exit_code = 4


# -- bundles and the store --------------------------------------------------------------------------------


class BundleError(FaceSDKError, ValueError):
    """A bundle folder or its `bundle.toml` is incomplete or malformed."""

    code = "bundle"


class ModelNotFound(FaceSDKError, FileNotFoundError):
    """No bundle of that name in the store, no file at that path."""

    code = "model-not-found"
    exit_code = 4


class IntegrityError(FaceSDKError, ValueError):
    """A file's sha256 is not the pinned one."""

    code = "integrity"


class LicenseNotAccepted(FaceSDKError, PermissionError):
    """The model's licence restricts its use and has not been accepted on this machine."""

    code = "license-not-accepted"
    exit_code = 2


class DownloadError(FaceSDKError, OSError):
    """A download failed, or was needed while offline."""

    code = "download"
    exit_code = 4


class MissingDependency(FaceSDKError, ImportError):
    """An optional part of FaceSDK is not installed."""

    code = "missing-dependency"
    exit_code = 4


class OutputError(FaceSDKError, OSError):
    """A result cannot be written; files that were there before are untouched."""

    code = "output"


# -- making engines ---------------------------------------------------------------------------------------


class ConversionError(FaceSDKError, ValueError):
    """A model file is malformed."""

    code = "conversion"


class UnsupportedOperator(ConversionError):
    """The model holds an operator, or a form of it, that the converter does not translate."""

    code = "unsupported-operator"


class ToleranceExceeded(FaceSDKError, ArithmeticError):
    """An engine differs from what it was made of by more than its tolerance, and was not written, or is not used."""

    code = "tolerance"


def one_of(what: str, value: object, choices: Sequence[str]) -> UsageError:
    """The error for a value outside a fixed set of choices."""
    return UsageError(f"{what} is {value!r}", remedy=f"choose one of: {', '.join(choices)}")
