"""Draws results of compare.py: ratios to the peers, the roofline, and speed behind a growing context.

Usage:

    python bench/plot.py RESULT.json [--out FOLDER] [--format svg|png]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

import cases
import limits

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
COLOURS = {"pyinfer": "#0b6e4f", "llama.cpp": "#c8553d"}
OTHERS = ("#6b7fd7", "#b08900", "#7a5195")
MARKS = {1: "o", 2: "s", 4: "^", 8: "D"}
plt.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyinfer",
}  # text as text; the same bytes from the same result


def colour(engine: str, engines: list[str]) -> str:
    """One colour an engine, in all pictures."""
    others = [name for name in engines if name not in COLOURS]
    return COLOURS.get(engine) or OTHERS[others.index(engine) % len(OTHERS)]


def count(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread{'s' if threads != 1 else ''}"


def engines_of(model: Row) -> list[str]:
    """Names of the engines that were measured."""
    return list(dict.fromkeys(series["engine"] for series in model["series"]))


def best(model: Row) -> Iterator[Row]:
    """For every case, number of threads and engine the settings with the highest median."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for series in model["series"]:
        if not series["first_round_only"]:
            groups.setdefault((series["case"], series["threads"], series["engine"]), []).append(series)
    for group in groups.values():
        yield max(group, key=lambda series: series["median"])


def draw_ratios(report: Row, axes: Axes) -> None:
    """Bars of our speed over each peer's best, with the range over the rounds."""
    rows = [(model["file"], ratio) for model in report["models"] for ratio in model["ratios"]]
    for at, (_, ratio) in enumerate(rows):
        reach = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
        fill = COLOURS["pyinfer"] if ratio["median"] >= 1 else COLOURS["llama.cpp"]
        axes.barh(at, ratio["median"], xerr=reach, color=fill, height=0.7, error_kw={"lw": 1, "capsize": 2})
        spot: Row = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{ratio['median']:.2f}", (ratio["high"], at), **spot)
    names = [
        f"{file.removesuffix('.gguf')}, {ratio['case']}, {count(ratio['threads'])}"
        f"{', adapters' if 'lora' in ratio.get('settings', {}) else ''}: {ratio['peer']}"
        for file, ratio in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=1)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("times the best speed of the peer: median and range")
    axes.spines[["top", "right"]].set_visible(False)


def limit(report: Row, threads: int, prefixes: tuple[str, ...]) -> float:
    """The highest measured limit whose probe begins with one of these names."""
    found = [
        entry["median"]
        for entry in report["limits"]
        if entry["threads"] == threads and entry["probe"].startswith(prefixes)
    ]
    return max(found, default=0.0)


def draw_roofline(report: Row, model: Row, axes: Axes) -> None:
    """Multiply-accumulates a second over multiply-accumulates a byte, under the machine's limits."""
    peaks = limits.PEAKS.get(model["isa"], ())
    thread_counts = sorted({series["threads"] for series in model["series"]})
    xs = [10 ** (i / 50) for i in range(-25, 200)]
    for threads in thread_counts:
        roof, slope = limit(report, threads, peaks), limit(report, threads, ("read",))
        style = "-" if threads == thread_counts[-1] else "--"
        label = f"{count(threads)}: {slope:.0f} GB/s, {roof:.0f} GMAC/s"
        axes.plot(xs, [min(roof, slope * x) for x in xs], style, color="grey", lw=1.2, label=label)
    engines = engines_of(model)
    labelled = set()
    for series in best(model):
        work = model["work"][series["case"]]
        tokens = case_tokens(series["case"])
        x, y = work["macs"] / work["bytes"], series["median"] * work["macs"] / tokens / 1e9
        mark = MARKS.get(series["threads"], "P")
        axes.plot(x, y, mark, color=colour(series["engine"], engines), ms=6, alpha=0.85)
        if series["engine"] == "pyinfer" and series["case"] not in labelled:
            labelled.add(series["case"])
            axes.annotate(
                series["case"], (x, y), xytext=(-4, 7), textcoords="offset points", fontsize=7, ha="right"
            )
    for engine in engines:
        axes.plot([], [], "o", color=colour(engine, engines), label=engine)
    for threads in thread_counts:
        axes.plot([], [], MARKS.get(threads, "P"), color="grey", label=f"measured with {count(threads)}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="MAC a byte read",
        ylabel="10⁹ multiply-accumulates a second",
    )
    axes.set_title(model["file"], fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.grid(True, which="major", lw=0.3)


def case_tokens(name: str) -> int:
    """Tokens that a case counts in all its sequences."""
    case = cases.parse(name)
    return case.tokens * case.sequences


def depth_of(name: str) -> float | None:
    """Mean depth at which a decode case runs; None for other cases."""
    match = re.fullmatch(r"decode-(\d+)(?:@(\d+))?", name)
    return None if match is None else int(match[2] or 0) + int(match[1]) / 2


def draw_depth(model: Row, axes: Axes) -> None:
    """Decode speed over the depth of the context."""
    engines = engines_of(model)
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for series in best(model):
        depth = depth_of(series["case"])
        if depth is not None:
            lines.setdefault((series["engine"], series["threads"]), []).append((depth, series["median"]))
    for (engine, threads), points in sorted(lines.items()):
        points.sort()
        style = "-" if threads == max(t for _, t in lines) else "--"
        label = f"{engine}, {count(threads)}"
        paint = colour(engine, engines)
        axes.plot(*zip(*points, strict=True), style, marker=MARKS.get(threads, "P"), color=paint, label=label)
    axes.set(xlabel="tokens in the context", ylabel="tokens a second, decode")
    axes.set_ylim(bottom=0)
    axes.set_title(model["file"], fontsize=10)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Writes a picture."""
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    print(path)


def grid(n: int) -> tuple[Any, list[Axes]]:
    """A figure with a panel for each model."""
    columns = min(2, n)
    rows = (n + columns - 1) // columns
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.6 * rows), squeeze=False)
    panels = [axes[i // columns][i % columns] for i in range(rows * columns)]
    for panel in panels[n:]:
        panel.set_visible(False)
    return figure, panels[:n]


def draw(report: Row, folder: Path, suffix: str) -> None:
    """All pictures of one result."""
    models = report["models"]
    n_ratios = sum(len(model["ratios"]) for model in models)
    if n_ratios:
        figure, axes = plt.subplots(figsize=(8, 1 + 0.28 * n_ratios))
        draw_ratios(report, axes)
        save(figure, folder / f"ratios.{suffix}")
    figure, panels = grid(len(models))
    for model, panel in zip(models, panels, strict=True):
        draw_roofline(report, model, panel)
    save(figure, folder / f"roofline.{suffix}")
    deep = [model for model in models if len({depth_of(s["case"]) for s in model["series"]} - {None}) > 1]
    if deep:
        figure, panels = grid(len(deep))
        for model, panel in zip(deep, panels, strict=True):
            draw_depth(model, panel)
        save(figure, folder / f"depth.{suffix}")


def main() -> None:
    """Draws one result."""
    parser = argparse.ArgumentParser(description="Draw a result of compare.py.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw(json.loads(args.result.read_text(encoding="utf-8")), args.out, args.format)


if __name__ == "__main__":
    main()
