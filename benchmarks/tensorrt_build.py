"""Building the plans of a bundle: seconds, size, memory, layers, attentions that became one kernel.

    python benchmarks/tensorrt_build.py BUNDLE [--precision fp32 fp16] [--engine NAME ...] [--profiles FILE]

TensorRT for RTX builds without a GPU; nothing is run.  Plans are thrown away, unless --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any, get_args

from facesdk.errors import FaceSDKError
from facesdk.store import Store
from facesdk_engines.tensorrt.options import BuildOptions, PlanDevice, PlanPrecision
from facesdk_engines.tensorrt.plans import Plan, build_plans
from harness import ROOT, save


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--device", choices=get_args(PlanDevice), default="tensorrt-rtx")
    parser.add_argument("--precision", choices=get_args(PlanPrecision), nargs="+", default=["fp32"])
    parser.add_argument("--engine", nargs="+", default=[])
    parser.add_argument("--profiles", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the plans")
    parser.add_argument("--dry", action="store_true", help="print the rows only")
    options = parser.parse_args()
    rows = [row for precision in options.precision for row in measured(options, precision)]
    if not options.dry:
        print(f"-> {save('tensorrt-build', rows).relative_to(ROOT)}")
    return 0


def measured(options: argparse.Namespace, precision: PlanPrecision) -> list[dict[str, Any]]:
    """One row an engine; an engine that cannot be built is told, and left out."""
    bundle = Store().open(options.bundle)
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


if __name__ == "__main__":
    raise SystemExit(main())
