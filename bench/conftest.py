"""Lets the benchmarks import the modules of this folder, and prints what the kernels reached."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints rates and shares of the machine's limits, which pytest-benchmark's own table does not know."""
    reports = terminalreporter.getreports("passed")
    found = [value for report in reports for key, value in report.user_properties if key == "rates"]
    if not found:
        return
    terminalreporter.section("kernels")
    terminalreporter.write_line(f"{'':<50}{'GB/s':>8}{'GMAC/s':>8}{'of reading':>12}{'of int8':>9}")
    for rates in found:
        assert isinstance(rates, dict)
        shares = [
            f"{100 * rates[key]:.0f} %" if key in rates else "" for key in ("of_read_limit", "of_int8_limit")
        ]
        text = f"{rates['name']:<50}{rates['GB/s']:>8.1f}{rates['GMAC/s']:>8.1f}{shares[0]:>12}{shares[1]:>9}"
        terminalreporter.write_line(text)
