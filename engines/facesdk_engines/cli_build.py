"""`facesdk build`: TensorRT plans of a bundle's engines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from facesdk.cli.options import add_options, read_options

from .tensorrt.options import BuildOptions


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Build TensorRT plans of a bundle's engines.

    A plan lies beside a JSON file that says what it was built of and for; one that is still right is not built again.
    """
    parser.add_argument("bundle", metavar="BUNDLE", help="name of an installed model, or a bundle's folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="for the plans (default: the bundle's)")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="only this one; may be given again"
    )
    parser.add_argument(
        "--profiles", type=Path, metavar="FILE", help="TOML with [profiles.NAME] in place of the bundle's"
    )
    parser.add_argument("--force", action="store_true", help="build plans again that are still right")
    add_options(parser, BuildOptions)
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the plans."""
    from facesdk.store import Store

    from .tensorrt.plans import Plan, build_plans

    made: list[Plan] = []
    with _bar() as on_progress:
        for plan in build_plans(
            Store().open(options.bundle), read_options(options, BuildOptions), engines=options.engine,
            folder=options.output, profiles=options.profiles, force=options.force, on_progress=on_progress,
        ):  # fmt: skip
            made.append(plan)
            if not options.json:
                sys.stdout.write(f"{_line(plan)}\n")
    plans = [{"path": str(plan.path), "built": plan.built, **dataclasses.asdict(plan.key)} for plan in made]
    return {"plans": plans}


def _line(plan: Any) -> str:
    """One line on a plan."""
    key, report = plan.key, plan.key.report
    if not plan.built:
        return f"{plan.path}  is still right"
    words = [f"{key.plan_size / 1e6:.1f} MB", f"{report['layers']} layers", f"{report['seconds']:.1f} s"]
    attention = report.get("attention", {})
    if any(attention.values()):
        words.append(f"attention: {len(attention['fused'])} fused, {len(attention['decomposed'])} not")
    return f"{plan.path}  {', '.join(words)}"


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float, str], None]]:
    """One bar an engine: percent, time left, and the builder's phase."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        bars: dict[str, tqdm[None]] = {}

        def show(engine: str, share: float, phase: str) -> None:
            if engine not in bars:
                hidden = not sys.stderr.isatty()
                # no least number of steps: the clock goes on where the share does not
                bar = tqdm(desc=engine, total=100, unit="%", miniters=0, delay=1.0, disable=hidden, file=sys.stderr)
                bars[engine] = stack.enter_context(bar)
            bars[engine].set_postfix_str(phase, refresh=False)
            bars[engine].update(round(share * 100) - bars[engine].n)

        yield show
