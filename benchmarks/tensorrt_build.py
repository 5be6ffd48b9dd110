"""Building TensorRT plans: seconds, size, memory, layers, attentions that became one kernel.

    python benchmarks/tensorrt_build.py [SYSTEM or BUNDLE ...] [--precision fp32 fp16] [--engine NAME ...]

A system of facesdk export is made first, at its published size with seeded random weights; without a name every one is,
one after the other.  Plans have the sizes that their bundle says.  TensorRT for RTX builds without a GPU; nothing is
run, and plans are thrown away, unless --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import generate
import swap
import synthesize
from facesdk.bundle import Bundle
from facesdk.errors import FaceSDKError
from facesdk.store import Store
from facesdk_engines.tensorrt.options import BuildOptions, PlanDevice, PlanPrecision
from facesdk_engines.tensorrt.plans import Plan, build_plans
from harness import ROOT, save


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PUBLISHED), metavar="NAME", help=", ".join(PUBLISHED))
    parser.add_argument("--device", choices=get_args(PlanDevice), default="tensorrt-rtx")
    parser.add_argument("--precision", choices=get_args(PlanPrecision), nargs="+", default=["fp32"])
    parser.add_argument("--engine", nargs="+", default=[])
    parser.add_argument("--profiles", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the plans")
    parser.add_argument("--weights", type=Path, help="folder to make the bundles in, or that has them")
    parser.add_argument("--dry", action="store_true", help="print the rows only")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.names:
        with contextlib.ExitStack() as stack:
            folder = options.weights or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bundle = published(name, folder, "fp16" in options.precision) if name in PUBLISHED else Store().open(name)
            rows += [row for precision in options.precision for row in measured(bundle, options, precision)]
    if not options.dry:
        print(f"-> {save('tensorrt-build', rows).relative_to(ROOT)}")
    return 0


def measured(bundle: Bundle, options: argparse.Namespace, precision: PlanPrecision) -> list[dict[str, Any]]:
    """One row an engine; an engine that cannot be built, or has no such form, is told and left out."""
    wanted = BuildOptions(options.device, precision)
    rows = []
    for engine in options.engine or bundle.engine_names:
        with contextlib.ExitStack() as stack:
            folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                (plan,) = build_plans(
                    bundle, wanted, engines=[engine], folder=folder, profiles=options.profiles, force=True
                )
            except FaceSDKError as error:
                print(f"  {engine:24} {precision}  {error}")
                continue
            rows.append(row_of(bundle.name, plan))
            print("  " + "  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def row_of(bundle: str, plan: Plan) -> dict[str, Any]:
    key, report = plan.key, plan.key.report
    attention = report.get("attention", {"fused": [], "decomposed": []})
    return {
        "case": f"{bundle}/{key.engine}", "system": f"{key.builder} {key.version}", "precision": key.precision,
        "seconds": report["seconds"], "plan_mb": round(key.plan_size / 1e6, 1), "peak_mb": report["peak_mb"],
        "layers": report["layers"], "attentions": len(attention["fused"]) + len(attention["decomposed"]),
        "fused": len(attention["fused"]),
    }  # fmt: skip


# -- bundles of random weights ----------------------------------------------------------------------------


def published(system: str, folder: Path, half: bool) -> Bundle:
    """The bundle of a system, made in `folder` where it is not there yet."""
    from facesdk_export.bundles import export

    bundle, files = folder / system, folder / f"{system}-files"
    if not bundle.exists():
        files.mkdir(parents=True)
        export(system, PUBLISHED[system](files), bundle, fp16=half)
        shutil.rmtree(files)
    return Bundle(bundle)


def of_network(name: str) -> Callable[[Path], Path]:
    """What writes the file of a network of facesdk_export.networks."""

    def file(folder: Path) -> Path:
        from facesdk_export import networks

        return saved(folder / "checkpoint.pth", getattr(networks, name)())

    return file


def saved(path: Path, network: Any) -> Path:
    import torch

    torch.save(network.state_dict(), path)
    return path


def xuehy_file(folder: Path) -> Path:
    from facesdk_export.networks import Deep3DRecon, IResNet
    from facesdk_export.networks.hififace_xuehy import xuehy_generator

    return saved(folder / "checkpoint.pth", xuehy_generator(Deep3DRecon(), IResNet((3, 13, 30, 3))))


def vec2face_files(folder: Path) -> Mapping[str, Path]:
    synthesize.random_checkpoints(folder)
    return {name: folder / file for name, file in synthesize.FILES.items() if (folder / file).exists()}


def face2diffusion_files(folder: Path) -> Mapping[str, Path]:
    """All engines of stable-diffusion are among its own."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from facesdk_export.networks import MSID, MappingNetwork

    diffusion = generate.random_weights(folder / "stable-diffusion", 320)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    CLIPTextModel(text).save_pretrained(diffusion / "text_encoder")  # a whole one in place of one layer
    msid = MSID()
    files = {"msid": msid, "mapping": MappingNetwork(msid.width), "mf2d": MappingNetwork(msid.width)}
    return {"stable_diffusion": diffusion} | {
        name: saved(folder / f"{name}.pt", network) for name, network in files.items()
    }


#: system -> what writes its published files in a folder
PUBLISHED: Mapping[str, Callable[[Path], Path | Mapping[str, Path]]] = {
    "6drepnet": of_network("SixDRepNet"),
    "arcface": of_network("IResNet"),
    "deep3d": of_network("Deep3DRecon"),
    "face2diffusion": face2diffusion_files,
    "hififace": lambda folder: swap.random_checkpoint(folder / "checkpoint.ckpt"),
    "ir-se50": of_network("IRSE"),
    "vec2face": vec2face_files,
    "xuehy": xuehy_file,
}


if __name__ == "__main__":
    sys.exit(main())
