from __future__ import annotations

from typing import Any

from .test_parity import NOT_BUILT


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A closing line that counts the cases whose system does not exist yet."""
    skipped = terminalreporter.stats.get("skipped", [])
    waiting = [report for report in skipped if isinstance(report.longrepr, tuple) and NOT_BUILT in report.longrepr[2]]
    if waiting:
        terminalreporter.write_line(f"parity: {len(waiting)} cases {NOT_BUILT}")
