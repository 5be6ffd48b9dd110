"""A thousand pictures in one process: nothing grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from facesdk.annotation.annotator import Annotator
from tests.bundles import DATA

STATM = Path("/proc/self/statm")
# a process of its own: in this one the allocator still holds, and gives back, what other tests used
SOAK = """
import json, os, sys, threading
from pathlib import Path
import numpy as np
from facesdk.annotation.annotator import Annotator
from facesdk.bundle import Bundle
from facesdk.image import read_image

def used():
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    counts = [sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("fd", "task")]
    return resident, [*counts, threading.active_count()]

annotator = Annotator(Bundle(sys.argv[1]), "cpu", threads=1)
picture = read_image(sys.argv[2])
crops = [np.ascontiguousarray(picture[top:, : 512 - top]) for top in (0, 8, 16, 24)]
seen = {}
for number in range(1, 1001):
    assert len(annotator(crops[number % 4]).faces) == 1
    if number in (200, 1000):
        seen[number] = used()
print(json.dumps(seen))
"""


@pytest.mark.skipif(not STATM.exists(), reason="no /proc on this system")
def test_a_thousand_annotations_take_no_more_memory_than_two_hundred(annotator_478: Annotator) -> None:
    words = [sys.executable, "-c", SOAK, str(annotator_478.bundle.folder), str(DATA / "astronaut.png")]
    run = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    assert run.returncode == 0, run.stderr
    early, late = json.loads(run.stdout).values()
    assert late[0] - early[0] < 3
    assert late[1] == early[1]
