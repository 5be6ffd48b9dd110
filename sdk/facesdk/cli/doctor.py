"""`facesdk doctor`: what works here, what is missing, and the command that fixes it."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..doctor import examine, healthy
from ..finding import Finding

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
    lines = _lines(findings)
    width = max(len(line.subject) for line in lines)
    text: list[str] = []
    for topic, group in groupby(lines, key=lambda line: line.topic):
        text.append(topic)
        for line in group:
            text.append(f"  {_MARKS[line.state]}  {line.subject.ljust(width)}  {line.fact}")
            if line.remedy:
                text.append(f"      {''.ljust(width)}  -> {line.remedy}")
    return "\n".join(text)


def _lines(findings: Sequence[Finding]) -> list[Finding]:
    """The findings; neighbours that say the same in one, with all their subjects."""
    groups = (list(group) for _, group in groupby(findings, key=lambda one: dataclasses.replace(one, subject="")))
    return [dataclasses.replace(group[0], subject=", ".join(one.subject for one in group)) for group in groups]


def _verdict(good: bool) -> str:
    if good:
        return "FaceSDK works here. Lines marked -- are optional."
    return "FaceSDK does not work here as it should: run the commands below the lines marked !!"


def without_home(text: str) -> str:
    """The text with the user's home folder written as `~`."""
    for folder in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        text = re.sub(re.escape(folder) + r"(?![\w.-])", "~", text)
    return text
