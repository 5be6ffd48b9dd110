"""Vec2Face on engines beside the same networks in torch's eager mode, alternating in one run.

    python benchmarks/synthesize.py [--checkpoints FOLDER] [--threads 2]

generator: vectors to pictures.  step: one step of attribute optimisation with its gradient, in torch by autograd.
scheduler: rows that pass make room for others, or the whole batch must pass as in the published code.  FOLDER holds
the published files; without it: random weights in files of their layout.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness import ROOT, Worker, alternate, save, statistics_of

WORKERS = Path(__file__).parent / "workers"
FILES = {
    "generator": "vec2face_generator.pth",
    "arcface": "arcface-r100-glint360k.pth",
    "magface": "magface-r100-glint360k.pth",
    "headpose": "6DRepNet_300W_LP_AFLW2000.pth",
}
#: case -> batch -> rounds
CASES = {"generator": {1: 12, 8: 8, 32: 4}, "step": {1: 8, 4: 4}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, help="folder of the published files; random weights by default")
    parser.add_argument("--bundle", type=Path, help="the bundle already exported from them")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = options.checkpoints or random_checkpoints(Path(folder))
        bundle = options.bundle or exported(checkpoints, Path(folder) / "bundle")
        rows = [*scheduler(Path(folder)), *networks(checkpoints, bundle, options.threads)]
    print(f"-> {save('synthesize', rows).relative_to(ROOT)}")
    return 0


# -- networks beside torch --------------------------------------------------------------------------------


def networks(checkpoints: Path, bundle: Path, threads: int) -> list[dict[str, Any]]:
    """One row per case, batch and system; each case's workers are gone before the next one's start."""
    rows = []
    for case, batches in CASES.items():
        variants = [("cpu", "fp32")]
        if importlib.util.find_spec("openvino"):
            variants += [("openvino", precision) for precision in ("fp32", "bf16")]
        workers = [Worker("torch eager", [sys.executable, WORKERS / "torch_synthesize.py", checkpoints, case, threads])]
        for device, precision in variants:
            words = [sys.executable, WORKERS / "facesdk_synthesize.py", bundle, case, device, precision, threads]
            workers.append(Worker(f"FaceSDK {device} {precision}", words))
        for batch, rounds in batches.items():
            rows += compare(workers, case, batch, rounds, threads)
        for worker in workers:
            worker.close()
    return rows


def compare(workers: list[Worker], case: str, batch: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Statistics, the ratio of medians to torch's, and how far the output is from torch's."""
    times = alternate(workers, {"do": "run", "batch": batch}, rounds, 1)
    results = {worker.name: np.array(worker.ask({"do": "output", "batch": batch})) for worker in workers}
    figures = {name: statistics_of(measured) for name, measured in times.items()}
    print(f"{case}, batch {batch}: {rounds} calls, {threads} threads")
    rows, exact = [], results["torch eager"]
    for worker in workers:
        name, median = worker.name, figures[worker.name]["median_ms"]
        ratio = round(median / figures["torch eager"]["median_ms"], 3)
        error = float(np.sqrt(np.mean((results[name] - exact) ** 2)) / exact.std())
        peak = round(worker.ask({"do": "memory"}))
        print(
            f"  {name:24} median {median:9.1f} ms  {ratio:.3f}x  rms error {error:.1e}  peak {peak} MB  {worker.about}"
        )
        row = {"case": f"{case} {batch}", "system": name, "versions": worker.about, "threads": threads}
        row |= {**figures[name], "ratio_to_torch": ratio, "calls": rounds, "rms_error": float(f"{error:.3g}")}
        rows.append(row | {"peak_mb": peak})
    return rows


# -- the two stopping rules -------------------------------------------------------------------------------


def scheduler(folder: Path) -> list[dict[str, Any]]:
    """Rows through the step engine per accepted picture, for 32 rows of small random networks in batches of 8.

    The quality asked for is what the best twentieth of the untouched pictures has.  A picture is accepted that
    meets it itself, whichever rule ended its optimisation.
    """
    from facesdk import Bundle
    from facesdk.synthesis.attributes import AttributeOptions, Row, optimise
    from facesdk.synthesis.masks import POSITIONS, token_masks
    from facesdk.synthesis.networks import SynthesisNetworks

    vectors = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    rows, limit = [], 0.01
    with SynthesisNetworks(Bundle(small_bundle(folder)), "cpu") as small:

        def masks(key: int, step: int) -> Any:
            return token_masks(np.random.default_rng([key, step]).random((1, POSITIONS)), 0.3, small.law)

        untouched = np.concatenate([small.pictures(vector[None], masks(i, 0)) for i, vector in enumerate(vectors)])
        target = float(np.quantile(small.measure(untouched)["quality"], 0.95))
        for rule in ("row", "batch"):
            work: list[int] = []
            options = AttributeOptions(quality=target, quality_limit=limit, identity_limit=2.0, steps=30, rule=rule)
            waiting = [Row(i, v, v, lambda step, i=i: masks(i, step)) for i, v in enumerate(vectors)]
            results = list(optimise(small, waiting, options, 8, work.append))
            accepted = sum(each.values["quality"] >= target - limit for each in results)
            figures = {"accepted": accepted, "of": len(vectors), "rows_per_accepted": round(sum(work) / accepted, 2)}
            print(f"scheduler, rule {rule}: {figures}")
            rows.append({"case": "scheduler", "system": f"rule {rule}", **figures})
    return rows


# -- files of random weights ------------------------------------------------------------------------------


def random_checkpoints(folder: Path) -> Path:
    """The folder, with files of the published layout and seeded random weights."""
    from facesdk_export.networks import IResNet, SixDRepNet
    from facesdk_export.networks.vec2face import Generator, ImageDecoder

    write(folder, lambda: Generator(ImageDecoder()), IResNet, SixDRepNet)
    return folder


def small_bundle(folder: Path) -> Path:
    """A bundle of networks a hundredth of the size, with random weights."""
    from facesdk_export.networks import IResNet
    from facesdk_export.networks.vec2face import Generator, ImageDecoder

    files = folder / "small"
    files.mkdir()
    generator = {"dim": 96, "depth": 1, "heads": 12, "decoder_dim": 96, "decoder_depth": 1}
    write(files, lambda: Generator(ImageDecoder(32, 32), **generator), lambda: IResNet((1, 1, 1, 1)), None)
    return exported(files, folder / "small-bundle")


def write(folder: Path, generator: Any, recognition: Any, pose: Any) -> None:
    import torch

    torch.manual_seed(0)
    torch.save({"model_vec2face": generator().state_dict()}, folder / FILES["generator"])
    for name in ("arcface", "magface"):
        torch.save(recognition().state_dict(), folder / FILES[name])
    if pose is not None:
        torch.save(pose().state_dict(), folder / FILES["headpose"])


def exported(checkpoints: Path, bundle: Path) -> Path:
    from facesdk_export.bundles import export

    files = {name: checkpoints / file for name, file in FILES.items() if (checkpoints / file).exists()}
    export("vec2face", files, bundle)
    return bundle


if __name__ == "__main__":
    sys.exit(main())
