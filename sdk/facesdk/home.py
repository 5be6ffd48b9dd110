"""Where FaceSDK keeps bundles, downloads and measured choices."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$FACESDK_HOME`, else `facesdk` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if named := os.environ.get("FACESDK_HOME"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "facesdk"


def offline() -> bool:
    """Whether `$FACESDK_OFFLINE` forbids opening sockets."""
    return os.environ.get("FACESDK_OFFLINE", "") not in ("", "0")
