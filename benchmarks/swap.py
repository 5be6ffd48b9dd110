"""HifiFace on engines beside the same network in torch's eager mode, alternating in one run.

    python benchmarks/swap.py [--checkpoint hififace_opensouce_299999.ckpt] [--threads 2]

core: encoder, decoder and fusion of a 256 px crop.  frame: from two crops to the swapped one, where torch reads the
source anew as the original does, and the SDK has it cached.  series: 21 frames of an interpolation, where torch
recomputes everything as the original does, and the SDK what changes.  Without a checkpoint: random weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness import ROOT, Worker, alternate, save, statistics_of

WORKERS = Path(__file__).parent / "workers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the published checkpoint; random weights by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or random_checkpoint(Path(folder) / "random.ckpt")
        bundle = Path(folder) / "bundle"
        command = [sys.executable, "-m", "facesdk.cli", "export", "hififace", "--checkpoint", checkpoint, "-o", bundle]
        subprocess.run(command, check=True)
        workers = [Worker("torch eager", [sys.executable, WORKERS / "torch_swap.py", checkpoint, options.threads])]
        variants = [("cpu", "fp32")] + [
            ("openvino", p) for p in ("fp32", "bf16") if importlib.util.find_spec("openvino")
        ]
        for device, precision in variants:
            words = [sys.executable, WORKERS / "facesdk_swap.py", bundle, device, precision, options.threads]
            workers.append(Worker(f"FaceSDK {device} {precision}", words))
        rows = [row for case in ("core", "frame") for row in compare(workers, case, options.rounds, options.threads)]
        rows += compare(workers, "series", max(1, options.rounds // 6), options.threads)
        for worker in workers[1:]:
            (again,) = worker.ask({"do": "recomputed", "calls": 1})
            print(f"  {worker.name:24} 21 frames recomputing everything on engines: {again:.0f} ms")
            rows.append({"case": "series recomputed", "system": worker.name, "median_ms": round(again, 1)})
        add_memory_and_error(workers, rows)
        for worker in workers:
            worker.close()
    print(f"-> {save('swap', rows).relative_to(ROOT)}")
    return 0


def compare(workers: list[Worker], case: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row per system: statistics, and the ratio of medians to torch's."""
    times = alternate(workers, {"do": case}, rounds, 1)
    figures = {name: statistics_of(measured) for name, measured in times.items()}
    print(f"{case}: {rounds} calls, {threads} threads")
    rows = []
    for worker in workers:
        ratio = round(figures[worker.name]["median_ms"] / figures["torch eager"]["median_ms"], 3)
        print(f"  {worker.name:24} median {figures[worker.name]['median_ms']:9.1f} ms   {ratio:.2f}x   {worker.about}")
        row = {"case": case, "system": worker.name, "versions": worker.about, "threads": threads}
        rows.append({**row, **figures[worker.name], "ratio_to_torch": ratio, "calls": rounds})
    return rows


def add_memory_and_error(workers: list[Worker], rows: list[dict[str, Any]]) -> None:
    """Peak resident memory of each process; of bf16 the picture's error against fp32 on the same backend."""
    for worker in workers:
        peak = round(worker.ask({"do": "memory"}))
        print(f"  {worker.name:24} peak memory {peak} MB")
        for row in rows:
            if row["system"] == worker.name and row["case"] == "core":
                row["peak_mb"] = peak
    pictures = {worker.name: np.array(worker.ask({"do": "outputs"})) for worker in workers[1:]}
    exact = pictures["FaceSDK cpu fp32"]
    for name, picture in pictures.items():
        error = float(np.sqrt(np.mean((picture - exact) ** 2)) / exact.std())
        print(f"  {name:24} rms error of the picture {error:.2%} of its standard deviation")
        for row in rows:
            if row["system"] == name and row["case"] == "core":
                row["rms_error"] = round(error, 6)


def random_checkpoint(path: Path) -> Path:
    """A file of the published layout with seeded random weights."""
    import torch

    from facesdk_export.networks import Deep3DRecon, IResNet
    from facesdk_export.networks.hififace import published_generator

    torch.manual_seed(0)
    generator = published_generator(Deep3DRecon(), IResNet((3, 13, 30, 3)))
    torch.save({"state_dict": {f"generator.{name}": value for name, value in generator.state_dict().items()}}, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
