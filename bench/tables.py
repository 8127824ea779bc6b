"""Renders a result of compare.py as Markdown tables, for the terminal and for docs/performance.md.

Usage:

    python bench/tables.py RESULT.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table with aligned columns; the first column is text, the others figures."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def text(line: list[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([text(head), rule, *map(text, lines[1:])])


def figure(value: float) -> str:
    """Three significant digits or all digits before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value: float | None) -> str:
    """A share as per cent."""
    return "" if value is None else f"{100 * value:.0f} %"


def settings(values: Row) -> str:
    """Settings in one word each, such as `repack flash_attn`; those that are off are left out."""
    return (
        " ".join(
            name if value == 1 or name == "lora" else f"{name}={value}"
            for name, value in values.items()
            if value
        )
        or "plain"
    )


def find(series: list[Row], ratio: Row, engine: str, wanted: Row | None) -> Row:
    """The series that a ratio was taken from."""
    return next(
        s
        for s in series
        if (s["case"], s["threads"], s["engine"]) == (ratio["case"], ratio["threads"], engine)
        and (wanted is None or s["settings"] == wanted)
    )


def speed(model: Row) -> str:
    """Tokens a second of every case, beside the best of each peer."""
    head = [
        "case",
        "threads",
        "pyinfer",
        "of limit",
        "peer",
        "tokens/s",
        "of limit",
        "settings",
        "ratio",
        "spread",
    ]
    rows = []
    for ratio in model["ratios"]:
        ours = find(model["series"], ratio, ratio["engine"], ratio.get("settings"))
        theirs = find(model["series"], ratio, ratio["peer"], ratio["peer_settings"])
        spread = f"{ratio['low']:.2f}–{ratio['high']:.2f}"
        left = [ratio["case"], str(ratio["threads"]), figure(ours["median"]), share(ours["share_of_limit"])]
        right = [ratio["peer"], figure(theirs["median"]), share(theirs["share_of_limit"])]
        rows.append([*left, *right, settings(ratio["peer_settings"]), f"{ratio['median']:.2f}", spread])
    if rows:
        return table(head, rows)
    for s in model["series"]:
        rows.append(
            [s["case"], str(s["threads"]), s["engine"], figure(s["median"]), share(s["share_of_limit"])]
        )
    return table(["case", "threads", "engine", "tokens/s", "of limit"], rows)


def adapters(model: Row) -> str:
    """What adapters cost each engine."""
    head = ["case", "threads", "engine", "without", "with", "cost", "spread"]
    rows = []
    for one in model["lora"]["overheads"]:
        spread = f"{1 / one['high'] - 1:.1%} to {1 / one['low'] - 1:.1%}"
        speeds = [figure(one["bare"]), figure(one["speed"])]
        rows.append(
            [one["case"], str(one["threads"]), one["engine"], *speeds, f"{1 / one['median'] - 1:.1%}", spread]
        )
    return table(head, rows)


def starts(model: Row) -> str:
    """Medians of the starts: seconds from the start of the process, without interpreter and import, and peak memory."""
    head = [
        "start",
        "file",
        "process to first token",
        "open to first token",
        "peak memory",
        "of it file pages",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for start in model["starts"]:
        name = f"{start['engine']} {settings(start['settings']) if start['settings'] else ''}".strip()
        groups.setdefault((name, start["file"]), []).append(start)
    rows = []
    for (name, kind), group in groups.items():
        total = statistics.median(s["total"] for s in group)
        engine = statistics.median(s["open"] + s["first_token"] for s in group)
        peak = statistics.median(s["memory"].get("peak", 0) for s in group)
        pages = statistics.median(s["memory"].get("file", 0) for s in group)
        row = [
            name,
            kind,
            f"{total:.3f} s",
            f"{engine:.3f} s",
            f"{peak / 1e6:.0f} MB",
            f"{pages / 1e6:.0f} MB",
        ]
        rows.append(row)
    return table(head, rows)


def events(model: Row) -> str:
    """Instructions and cycles a token."""
    rows = []
    for entry in model["counters"]:
        name = f"{entry['engine']} {settings(entry['settings']) if entry['settings'] else ''}".strip()
        counts = [f"{entry['per_token'].get(event, 0) / 1e6:.2f} M" for event in ("instructions", "cycles")]
        rows.append([name, entry["case"], str(entry["threads"]), *counts])
    return table(["engine", "case", "threads", "instructions a token", "cycles a token"], rows)


def facts(model: Row) -> str:
    """One paragraph: bytes, conversion, agreement of the logits."""
    convert = model["convert"]
    mix = ", ".join(f"{name} {bytes_ / 1e6:.1f} MB" for name, bytes_ in model["types"].items())
    lines = [
        f"{model['weight_bytes'] / 1e6:.0f} MB and {model['layer_macs'] / 1e9:.3f} G MACs a token ({mix});",
        f"instruction set {model['isa']}; converted in {convert['seconds']:.2f} s to {convert['bytes'] / 1e6:.0f} MB",
        f"(a copy of the file takes {convert['copy_seconds']:.2f} s).",
    ]
    for entry in [*model["agreement"], *model.get("lora", {}).get("agreement", [])]:
        who = f"{entry['peer']} {settings(entry['settings'])}"
        if "failed" in entry:
            lines.append(f"Not compared: {who}, which gives no logits: {entry['failed']}.")
            continue
        same = "the same" if entry["same_token"] else "another"
        lines.append(f"KL divergence of our logits from {who}: {entry['kl']:.2g}, {same} first choice.")
    return "\n".join(lines)


def limit_table(report: Row) -> str:
    """The machine's limits: medians over the run, and their range."""
    rows = []
    for limit in report["limits"]:
        spread = f"{figure(limit['low'])}–{figure(limit['high'])}"
        rows.append([limit["probe"], str(limit["threads"]), figure(limit["median"]), spread, limit["unit"]])
    return table(["limit", "threads", "median", "range", "unit"], rows)


def render(report: Row) -> str:
    """All tables of a result."""
    machine = report["machine"]
    head = f"{machine['cpu']}, {machine['processors']} processors, {machine['system']}; {report['date'][:10]}"
    parts = [f"{head}; commit {report['commit'] or 'unknown'}"]
    for model in report["models"]:
        parts += [f"### {model['file']}", facts(model), speed(model)]
        parts += [adapters(model)] if model.get("lora", {}).get("overheads") else []
        parts += [starts(model)] if model["starts"] else []
        parts += [events(model)] if model["counters"] else []
    parts += ["### Limits of the machine", limit_table(report)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
