"""A thousand pictures in one process: nothing grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.image import read_image
from tests.bundles import DATA

STATM, DESCRIPTORS, TASKS = Path("/proc/self/statm"), Path("/proc/self/fd"), Path("/proc/self/task")


def resident_mb() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


@pytest.mark.skipif(not STATM.exists(), reason="no /proc on this system")
def test_a_thousand_annotations_take_no_more_memory_than_two_hundred(annotator_478: Annotator) -> None:
    picture = read_image(DATA / "astronaut.png")
    crops = [np.ascontiguousarray(picture[top:, : 512 - top]) for top in (0, 8, 16, 24)]
    seen = {}
    for number in range(1, 1001):
        assert len(annotator_478(crops[number % 4]).faces) == 1
        if number in (200, 1000):
            seen[number] = resident_mb(), count(DESCRIPTORS), count(TASKS), threading.active_count()
    assert seen[1000][0] - seen[200][0] < 3
    assert seen[1000][1:] == seen[200][1:]
