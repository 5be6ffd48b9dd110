"""`facesdk doctor`: what works here, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..doctor import Finding, examine, healthy

_MARKS = {"ok": "ok", "note": "--", "problem": "!!"}


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Say what works here, what is missing, and the command that fixes it; exit status 4 if something is wrong."""
    parser.add_argument("--report", action="store_true", help="a block to paste into an issue, without your paths")
    return _run


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    findings = examine()
    good = healthy(findings)
    if not options.json:
        text = _table(findings)
        print(f"```\n{without_home(text)}\n```" if options.report else f"{text}\n\n{_verdict(good)}")
    document = {"healthy": good, "findings": [dataclasses.asdict(finding) for finding in findings]}
    return document, 0 if good else 4


def _table(findings: Sequence[Finding]) -> str:
    width = max(len(finding.subject) for finding in findings)
    lines: list[str] = []
    for topic, group in groupby(findings, key=lambda finding: finding.topic):
        lines.append(topic)
        for finding in group:
            lines.append(f"  {_MARKS[finding.state]}  {finding.subject.ljust(width)}  {finding.fact}")
            if finding.remedy:
                lines.append(f"      {''.ljust(width)}  -> {finding.remedy}")
    return "\n".join(lines)


def _verdict(good: bool) -> str:
    if good:
        return "FaceSDK works here. Lines marked -- are optional."
    return "FaceSDK does not work here as it should: run the commands below the lines marked !!"


def without_home(text: str) -> str:
    """The text with the user's home folder written as `~`."""
    for folder in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        text = re.sub(re.escape(folder) + r"(?![\w.-])", "~", text)
    return text
