"""Fixtures of the annotation bundles, made once per run from real model files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.bundle import Bundle
from facesdk.errors import DownloadError
from facesdk.store import Store

REFERENCE = Path(os.environ.get("FACESDK_REFERENCE") or Path(__file__).parents[2] / "shared" / "reference")
TASK = REFERENCE / "annotation" / "models" / "face_landmarker_v2_with_blendshapes.task"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def models_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its own with every annotation bundle that can be made here."""
    home = tmp_path_factory.mktemp("models")
    if TASK.is_file():
        Store(home).add(TASK)
    return home


@pytest.fixture(scope="session")
def bundle_478(models_home: Path) -> Bundle:
    """478 points and blendshapes, from the reference's task file."""
    if not TASK.is_file():
        pytest.skip(f"no task file at {TASK}; set FACESDK_REFERENCE")
    return Store(models_home).open("annotation-478")


@pytest.fixture(scope="session")
def bundle_468(models_home: Path) -> Bundle:
    """468 points and the full-range detector, from the package index."""
    try:
        return Store(models_home).pull("annotation")
    except DownloadError as error:
        pytest.skip(f"the package index cannot be reached: {error.cause}")


@pytest.fixture(scope="session")
def annotator_478(bundle_478: Bundle) -> Annotator:
    return Annotator(bundle_478, "cpu", threads=1)


@pytest.fixture(scope="session")
def annotator_468(bundle_468: Bundle) -> Annotator:
    return Annotator(bundle_468, "cpu", threads=1)
