"""Annotation beside MediaPipe: same pictures, all outputs, one thread each, alternating in one run.

    python benchmarks/annotate.py --task face_landmarker.task [PICTURE ...]

Outputs of both: box, 478 landmarks, 52 blendshapes, facial transform of one face; ours also pose and five points.
MediaPipe runs in a virtual environment of its own (build/peers), made at first use.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from facesdk import Store
from harness import ROOT, Worker, alternate, peer_python, save, statistics_of

MEDIAPIPE = "mediapipe==1.2.2"
DATA = ROOT / "tests" / "data"
REFERENCE = Path(os.environ.get("FACESDK_REFERENCE") or ROOT.parent / "shared" / "reference")
TASK = REFERENCE / "annotation" / "models" / "face_landmarker_v2_with_blendshapes.task"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, default=sorted(DATA.glob("astronaut*.png")))
    parser.add_argument("--task", type=Path, default=TASK, help="face_landmarker*.task file that both sides run")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=10, help="calls of one side before the other takes its turn")
    options = parser.parse_args()
    workers_folder = Path(__file__).parent / "workers"
    with tempfile.TemporaryDirectory() as home:
        bundle = Store(Path(home)).add(options.task)
        ours = [sys.executable, workers_folder / "facesdk_annotate.py", bundle.folder]
        devices = ["cpu"] + (["openvino"] if importlib.util.find_spec("openvino") else [])
        python = peer_python("mediapipe", MEDIAPIPE)
        workers = [Worker("MediaPipe", [python, workers_folder / "mediapipe_annotate.py", options.task], 0)]
        workers += [Worker(f"FaceSDK {device}", [*ours, device], 0) for device in devices]
        rows = [row for picture in options.pictures for row in compare(workers, picture, options.rounds, options.calls)]
        for worker in workers:
            worker.close()
    print(f"-> {save('annotate', rows).relative_to(ROOT)}")
    return 0


def compare(workers: list[Worker], picture: Path, rounds: int, calls: int) -> list[dict[str, Any]]:
    """One row per system for a picture: statistics, and the ratio of medians to MediaPipe's."""
    times = alternate(workers, {"do": "annotate", "picture": str(picture)}, rounds, calls)
    figures = {name: statistics_of(measured) for name, measured in times.items()}
    peer = figures["MediaPipe"]["median_ms"]
    print(f"{picture.name}: {rounds} x {calls} calls, one thread")
    rows = []
    for worker in workers:
        ratio = round(figures[worker.name]["median_ms"] / peer, 3)
        print(f"  {worker.name:18} median {figures[worker.name]['median_ms']:7.3f} ms   {ratio:.2f}x   {worker.about}")
        row = {"case": picture.stem, "system": worker.name, "versions": worker.about, "threads": 1}
        rows.append({**row, **figures[worker.name], "ratio_to_mediapipe": ratio, "calls": rounds * calls})
    return rows


if __name__ == "__main__":
    sys.exit(main())
