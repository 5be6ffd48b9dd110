"""`facesdk build`: TensorRT plans of a bundle's engines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facesdk.cli.options import add_options, read_options

from .tensorrt.options import BuildOptions

if TYPE_CHECKING:
    from tqdm import tqdm


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Build TensorRT plans of a bundle's engines.

    A plan lies beside a JSON file that says what it was built of and for; one that is still right is not built again.
    """
    parser.add_argument("bundle", metavar="BUNDLE", help="name of an installed model, or a bundle's folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="for the plans (default: the bundle's)")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
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
    with contextlib.closing(_Bar()) as bar:
        for plan in build_plans(
            Store().open(options.bundle), read_options(options, BuildOptions), engines=options.engine,
            folder=options.output, profiles=options.profiles, force=options.force, on_progress=bar.show,
        ):  # fmt: skip
            made.append(plan)
            bar.close()
            if not options.json:
                sys.stdout.write(f"{_line(plan, options.precision)}\n")
                sys.stdout.flush()  # the next plan may take minutes
    plans = [{"path": str(plan.path), "built": plan.built, **dataclasses.asdict(plan.key)} for plan in made]
    return {"plans": plans}


def _line(plan: Any, asked: str) -> str:
    """One line on a plan; that it is not in the precision that was asked for is said."""
    key, report = plan.key, plan.key.report
    other = [] if key.precision == asked else [f"{key.precision}: it has no {asked} form"]
    if not plan.built:
        return f"{plan.path}  {', '.join(['is still right', *other])}"
    words = [f"{key.plan_size / 1e6:.1f} MB", f"{report['layers']} layers", f"{report['seconds']:.1f} s"]
    attention = report.get("attention", {})
    if any(attention.values()):
        words.append(f"attention: {len(attention['fused'])} fused, {len(attention['decomposed'])} not")
    return f"{plan.path}  {', '.join(words + other)}"


class _Bar:
    """The bar of the engine under way, on standard error: percent, time, and the builder's phase; gone when it is done.

    Lines on standard output would else be written behind it.
    """

    def __init__(self) -> None:
        self._engine = ""
        self._bar: tqdm[None] | None = None

    def show(self, engine: str, share: float, phase: str) -> None:
        """Draw the share of an engine's build that is done."""
        from tqdm import tqdm

        if self._bar is None or engine != self._engine:
            self.close()
            # no least number of steps: the clock goes on where the share does not
            self._bar = tqdm(
                desc=engine, total=100, unit="%", miniters=0, delay=1.0, leave=False,
                disable=not sys.stderr.isatty(), file=sys.stderr,
            )  # fmt: skip
            self._engine = engine
        self._bar.set_postfix_str(phase, refresh=False)
        self._bar.update(round(share * 100) - self._bar.n)

    def close(self) -> None:
        """Wipe it off."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
