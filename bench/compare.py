"""Compares pyinfer with its peers on the same GGUF files, interleaved in one run, each engine in a process of its own.

    python bench/compare.py MODEL.gguf... --peer-python PEER/bin/python [--threads 1,2] [--json OUT]

Every round of a case runs each engine once and probes the machine's limit once; figures are medians over rounds, and
ratios are taken round by round. A peer runs with all its settings twice before, uncounted; settings whose better run is
more than a fifth behind its best are left out of the rounds that count, and pyinfer is compared with the best of the
others. Each engine's logits must be near ours. With `--lora RANKS`, each engine also runs with random adapters of these
ranks on all matrices of the layers, and what they cost it is told beside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import cases
import counters
import gguf_model
import limits
import make_adapter
import page_cache
import results
import tables
from cases import Case
from gguf_model import GgufModel
from limits import Limit
from participant import Participant, ParticipantError, Process, Settings, Skipped, measure_start, script
from results import Series

OURS = "pyinfer"
SETTLE = 0.05  # seconds between runs, for spinning threads to park
BEHIND = 0.8  # share of a peer's best below which settings are dropped before the rounds that count
QUIET = 0.05  # share of the processors that others may use
CHECKED = 64  # tokens whose last logits are compared between engines
MOST_KL = (
    0.1  # divergence beyond which engines do not compute the same: quantised activations make some hundredths
)
COLD = 0.05  # share of a file that may be in memory before a cold start


@dataclass
class Machine:
    """The latest measured limits by kind and threads, and all of them."""

    isa: str
    log: list[Limit] = field(default_factory=list)
    latest: dict[tuple[str, int], list[Limit]] = field(default_factory=dict)

    def probe(self, kind: str, threads: int) -> None:
        """Measures one kind of limit again."""
        mib = max(256, 4 * results.last_level_bytes() >> 20)
        found = limits.probe("compute" if kind == "compute" else "memory", threads, 0.1, mib)
        self.latest[kind, threads] = found
        self.log += found

    def prepare(self, threads: int) -> None:
        """Measures what was not measured yet."""
        for kind in ("compute", "memory"):
            if (kind, threads) not in self.latest:
                self.probe(kind, threads)

    def ideal_seconds(self, model: GgufModel, case: Case, threads: int) -> float | None:
        """Seconds that a case takes at the limits measured last; None if the instruction set has no int8 probe."""
        if self.isa not in limits.PEAKS:
            return None
        work = model.work(case)
        macs = limits.int8_peak(self.latest["compute", threads], self.isa, threads) * 1e9
        bandwidth = limits.read_peak(self.latest["memory", threads], threads) * 1e9
        return max(work.macs / macs, work.bytes / bandwidth)


@dataclass(frozen=True)
class Entry:
    """One engine with one choice of settings in one case."""

    process: Process
    settings: Settings
    series: Series


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def entries(processes: list[Process], case: Case, threads: int) -> list[Entry]:
    """Every engine with every setting that matters to a case."""
    found = []
    for process in processes:
        who = process.participant
        for settings in who.batch_settings if case.kind == "batch" else who.run_settings:
            shown = {**who.open_settings, **settings}
            found.append(Entry(process, settings, Series(case.name, threads, who.engine, shown)))
    return found


def alike(one: Entry, other: Entry) -> bool:
    """Whether two entries differ in settings alone, not in engine or adapters."""
    return one.series.engine == other.series.engine and has_lora(one.series) == has_lora(other.series)


def has_lora(series: Series) -> bool:
    """Whether it was measured with adapters."""
    return "lora" in series.settings


def warmed_up(all_entries: list[Entry], case: Case, threads: int) -> list[tuple[Entry, float]]:
    """Runs everything uncounted, and what differs in settings alone once more in the other order; the better speed of
    those that can run.
    """
    speeds: list[tuple[Entry, float]] = []
    for entry in all_entries:
        try:
            speeds.append((entry, entry.process.run(case.name, threads, entry.settings)))
        except (Skipped, ParticipantError) as reason:
            say(
                f"  {entry.series.engine} {tables.settings(entry.series.settings)} skips {case.name}: {reason}"
            )
        time.sleep(SETTLE)
    for i, (entry, speed) in reversed(list(enumerate(speeds))):
        if sum(alike(entry, other) for other, _ in speeds) > 1:
            speeds[i] = (entry, max(speed, entry.process.run(case.name, threads, entry.settings)))
            time.sleep(SETTLE)
    return speeds


def first_round(all_entries: list[Entry], case: Case, threads: int) -> list[Entry]:
    """Runs everything uncounted; returns the entries that stay."""
    speeds, stay = warmed_up(all_entries, case, threads), []
    for entry, speed in speeds:
        fastest = max(s for e, s in speeds if alike(e, entry))
        if speed >= BEHIND * fastest:
            stay.append(entry)
        else:
            entry.series.samples.append(speed)
            entry.series.first_round_only = True
    return stay


def measure(
    processes: list[Process], model: GgufModel, case: Case, threads: int, repeats: int, machine: Machine
) -> list[Series]:
    """Measures one case with one number of threads."""
    everything = entries(processes, case, threads)
    machine.prepare(threads)
    stay = first_round(everything, case, threads)
    for round_ in range(repeats):
        machine.probe("compute" if case.kind == "prefill" else "memory", threads)
        ideal = machine.ideal_seconds(model, case, threads)
        for entry in stay if round_ % 2 == 0 else stay[::-1]:
            time.sleep(SETTLE)
            speed = entry.process.run(case.name, threads, entry.settings)
            entry.series.samples.append(speed)
            if ideal is not None:
                entry.series.shares.append(ideal * speed / (case.tokens * case.sequences))
    forget(processes)
    return [entry.series for entry in everything if entry.series.samples]


def forget(processes: list[Process]) -> None:
    """Has all engines that still run free their caches."""
    for process in processes:
        with suppress(ParticipantError):
            process.ask(op="forget")


def all_ratios(series: list[Series]) -> list[dict[str, Any]]:
    """Ours against the best of each peer, for every case and number of threads."""
    found = []
    for case, threads, lora in dict.fromkeys((s.case, s.threads, has_lora(s)) for s in series):
        here = [s for s in series if (s.case, s.threads, has_lora(s)) == (case, threads, lora)]
        ours = results.best(here, OURS)
        for peer in dict.fromkeys(s.engine for s in here if s.engine != OURS):
            theirs = results.best(here, peer)
            if ours and theirs:
                found.append({**results.ratio(ours, theirs), "settings": ours.settings})
    return found


def all_overheads(series: list[Series]) -> list[dict[str, Any]]:
    """Each engine with adapters against itself without, for every case and number of threads."""
    found = []
    for case, threads, engine in dict.fromkeys((s.case, s.threads, s.engine) for s in series):
        here = [s for s in series if (s.case, s.threads, s.engine) == (case, threads, engine)]
        bare = results.best([s for s in here if not has_lora(s)], engine)
        adapted = results.best([s for s in here if has_lora(s)], engine)
        if bare and adapted:
            found.append({**results.ratio(adapted, bare), "speed": adapted.median, "bare": bare.median})
    return found


def with_lora(who: Participant, adapters: list[Path]) -> Participant:
    """The same engine, run once more in every way with adapters."""
    if not adapters:
        return who
    lora = {"lora": [str(path) for path in adapters]}
    runs, batches = who.run_settings, who.batch_settings
    return replace(
        who,
        run_settings=(*({**s, **lora} for s in runs), *runs),
        batch_settings=(*({**s, **lora} for s in batches), *batches),
    )


def agreement(processes: list[Process], threads: int, adapted: bool) -> list[dict[str, Any]]:
    """How far the logits of the peers are from ours, with each of their settings, with adapters or without; of
    those that give none, why.
    """
    silent: list[dict[str, Any]] = []
    found: list[tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float64]]]] = []
    for process in processes:
        who = process.participant
        for settings in who.run_settings:
            if ("lora" in settings) != adapted:
                continue
            label = {"peer": who.engine, "settings": {**who.open_settings, **settings}}
            try:
                reply = process.ask(op="logits", n=CHECKED, threads=threads, settings=settings)
            except (Skipped, ParticipantError) as reason:
                say(f"  {who.engine} gives no logits: {reason}")
                silent.append({**label, "failed": str(reason)})
                continue
            found.append((label, np.array(reply["logits"], np.float64)))
            process.ask(op="forget")
    ours = next((logits for label, logits in found if label["peer"] == OURS), None)
    if ours is None:
        raise SystemExit("expected logits of pyinfer to compare with, found none")
    compared = [{**label, **distance(ours, theirs)} for label, theirs in found if label["peer"] != OURS]
    return compared + silent


def check_agreement(entries_: list[dict[str, Any]]) -> None:
    """Two engines that are compared must compute the same."""
    for entry in entries_:
        if "failed" not in entry and not entry["kl"] <= MOST_KL:
            who = f"{entry['peer']} {tables.settings(entry['settings'])}"
            raise SystemExit(
                f"{who}: expected logits within a divergence of {MOST_KL} of ours, found {entry['kl']:.3g}"
            )


def distance(
    ours: np.ndarray[Any, np.dtype[np.float64]], theirs: np.ndarray[Any, np.dtype[np.float64]]
) -> dict[str, Any]:
    """KL divergence of our distribution from theirs, and whether both choose the same token."""
    a = theirs - np.logaddexp.reduce(theirs)
    b = ours - np.logaddexp.reduce(ours)
    return {"kl": float(np.sum(np.exp(a) * (a - b))), "same_token": bool(ours.argmax() == theirs.argmax())}


def starts(participants: list[Participant], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time to the first token of fresh processes, with the file in memory and without, and the peak of memory."""
    found = []
    for kind, round_, who in product(("warm", "cold"), range(repeats), participants):
        if not who.can_start:
            continue
        page_cache.warm(who.model)
        if kind == "cold":
            page_cache.drop(who.model)
        share = page_cache.resident_share(who.model)
        if kind == "cold" and share > COLD:
            say(f"  no cold start of {who.engine}: {share:.0%} of {who.model} stays in memory, see --work")
            continue
        result = measure_start(who, threads)
        label = {"engine": who.engine, "settings": who.open_settings, "file": kind, "round": round_}
        found.append({**label, "resident_before": share, "file_bytes": who.model.stat().st_size, **result})
    return found


def count_events(
    processes: list[Process], names: list[str], thread_counts: list[int]
) -> list[dict[str, Any]]:
    """Instructions and cycles a token."""
    found = []
    for name, threads, process in product(names, thread_counts, processes):
        case = cases.parse(name)
        settings = process.participant.run_settings[-1]
        if not process.participant.can_start or case.depth or case.kind == "batch":
            continue
        process.run(name, threads, settings)
        events = counters.count(process.pid, lambda p=process, n=name, t=threads, s=settings: p.run(n, t, s))  # type: ignore[misc]
        shown = {**process.participant.open_settings, **settings}
        per_token = {event: value / case.tokens for event, value in events.items()}
        label = {"case": name, "threads": threads, "engine": process.participant.engine, "settings": shown}
        found.append({**label, "per_token": per_token})
    forget(processes)
    return found


def convert(source: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Converts a GGUF with pyinfer's own command; the time it takes beside the time a copy of the file takes."""
    target = folder / (source.stem + ".bin")
    page_cache.warm(source)
    start = time.perf_counter()
    shutil.copyfile(source, target)
    copied = time.perf_counter()
    target.unlink()
    command = [sys.executable, "-m", "pyinfer", "convert", str(source.resolve()), str(target)]
    began = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {result.stderr.strip()}")
    seconds = time.perf_counter() - began
    return target, {"seconds": seconds, "copy_seconds": copied - start, "bytes": target.stat().st_size}


def peer_choices(text: str) -> list[Settings]:
    """Settings as `repack=1,flash_attn=1;repack=0,flash_attn=1`; `all` means every combination of the two."""
    if text == "all":
        return [{"repack": r, "flash_attn": f} for r, f in product((0, 1), (0, 1))]
    choices = []
    for part in text.split(";"):
        pairs = [pair.split("=") for pair in part.split(",")]
        choices.append({name: int(value) for name, value in pairs})
    return choices


def peers(source: Path, args: argparse.Namespace) -> list[Participant]:
    """The participants other than ourselves."""
    choices = peer_choices(args.peer_settings)
    found = []
    for repack in sorted({choice.get("repack", 1) for choice in choices}):
        runs = [
            {k: v for k, v in c.items() if k != "repack"} for c in choices if c.get("repack", 1) == repack
        ]
        batches = [{**run, "kv_unified": unified} for run, unified in product(runs, (0, 1))]
        shared = (source, {"repack": repack}, tuple(runs))
        if args.peer_python:
            command = script("peer_llama_cpp.py", args.peer_python)
            found.append(Participant("llama.cpp", command, *shared, batch_settings=tuple(batches)))
        for binary in args.peer_binary:
            command = (*script("peer_llama_bench.py"), binary)
            alone = [Path(other).name for other in args.peer_binary].count(Path(binary).name) == 1
            name = Path(binary).name if alone else binary
            found.append(Participant(name, command, *shared, can_start=False))
    return found


@contextmanager
def running(participants: list[Participant]) -> Iterator[list[Process]]:
    """All engines with the model loaded."""
    processes: list[Process] = []
    try:
        for participant in participants:
            processes.append(Process(participant))
        yield processes
    finally:
        for process in processes:
            process.close()


def compare_model(source: Path, folder: Path, args: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Everything about one model."""
    model = gguf_model.read(source)
    say(
        f"{source.name}: {model.weight_bytes / 1e6:.0f} MB a token, {model.shape.layer_macs / 1e9:.3f} G MAC a token"
    )
    packed, conversion = convert(source, folder)
    environment = {"PYINFER_ISA": args.isa} if args.isa else {}
    ours = Participant(OURS, script("engine_pyinfer.py"), packed, environment=environment)
    adapters = [
        make_adapter.write(model.shape, rank, folder / f"{source.stem}.{i}.lora.gguf", seed=i)
        for i, rank in enumerate(args.lora)
    ]
    participants = [with_lora(who, adapters) for who in (ours, *peers(source, args))]
    report: dict[str, Any] = {
        "file": source.name,
        "file_bytes": model.file_bytes,
        "weight_bytes": model.weight_bytes,
        "types": model.types,
        "shape": asdict(model.shape),
        "layer_macs": model.shape.layer_macs,
        "work": {case.name: asdict(model.work(case)) for case in args.cases},
        "convert": conversion,
        "starts": starts(participants, args.threads[-1], args.starts) if args.starts else [],
    }
    with running(participants) as processes:
        report["engines"] = [{**p.about, "settings": p.participant.open_settings} for p in processes]
        machine.isa = str(processes[0].about["isa"])
        report["isa"] = machine.isa
        report["agreement"] = agreement(processes, args.threads[-1], adapted=False)
        adapted = agreement(processes, args.threads[-1], adapted=True) if adapters else []
        check_agreement([*report["agreement"], *adapted])
        series: list[Series] = []
        for case, threads in product(args.cases, args.threads):
            say(f"  {case.name}, {threads} threads")
            series += measure(processes, model, case, threads, args.repeats, machine)
        report["series"] = [s.to_json() for s in series]
        report["ratios"] = all_ratios(series)
        report["lora"] = {"ranks": args.lora, "overheads": all_overheads(series)}
        if adapters:
            report["lora"]["bytes"] = sum(path.stat().st_size for path in adapters)
            report["lora"]["agreement"] = adapted
        report["counters"] = []
        if args.counters:
            report["counters"] = count_events(processes, [c.name for c in args.cases], args.threads)
    packed.unlink()
    return report


def summary(log: list[Limit]) -> list[dict[str, Any]]:
    """Median, least and most of every limit that was probed."""
    found = []
    for probe, threads, unit in dict.fromkeys((limit.probe, limit.threads, limit.unit) for limit in log):
        values = [limit.value for limit in log if (limit.probe, limit.threads) == (probe, threads)]
        label = {"probe": probe, "threads": threads, "unit": unit, "median": statistics.median(values)}
        found.append({**label, "low": min(values), "high": max(values), "probes": len(values)})
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default_threads = sorted({1, processors})
    parser = argparse.ArgumentParser(description="Compare pyinfer with its peers on the same files.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument(
        "--peer-python", metavar="PATH", help="interpreter of an environment with llama-cpp-python"
    )
    parser.add_argument(
        "--peer-binary", action="append", default=[], metavar="PATH", help="a llama-bench program"
    )
    parser.add_argument(
        "--peer-settings", default="all", help="such as repack=1,flash_attn=1;repack=0,flash_attn=1"
    )
    parser.add_argument("--threads", default=",".join(map(str, default_threads)))
    parser.add_argument("--cases", default=cases.DEFAULT, help=f"default: {cases.DEFAULT}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--starts", type=int, default=3, help="rounds of starts, 0 for none")
    parser.add_argument("--no-counters", dest="counters", action="store_false")
    parser.add_argument("--isa", help="instruction set that pyinfer must use")
    parser.add_argument("--lora", default="", metavar="RANKS", help="such as 16 or 16,16,16")
    parser.add_argument("--json", type=Path, help="where to write the result, after each model")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="where converted models go meanwhile; default: a temporary one",
    )
    args = parser.parse_args()
    try:
        args.cases = [cases.parse(name) for name in args.cases.split(",") if name]
        args.threads = [int(text) for text in args.threads.split(",")]
        args.lora = [int(text) for text in args.lora.split(",") if text]
    except ValueError as error:
        parser.error(str(error))
    for folder in (args.work, args.json.parent if args.json else None):
        if folder is not None and not folder.is_dir():
            parser.error(f"{folder}: expected a folder, found none")
    for program in (args.peer_python, *args.peer_binary):
        if program is not None and shutil.which(program) is None:
            parser.error(f"{program}: expected a program, found none")
    return args


def main() -> int:
    """Compares, prints tables, writes JSON."""
    args = parse()
    if args.counters and (reason := counters.reason_unavailable()):
        say(f"instructions are not counted: {reason}")
        args.counters = False
    machine = Machine(isa="")
    report = results.header()
    if (report["busy_before"] or 0) > QUIET:
        say(f"others use {report['busy_before']:.0%} of this machine's processors: the figures will not hold")
    report["models"] = []
    with tempfile.TemporaryDirectory(prefix="pyinfer-compare-", dir=args.work) as folder:
        for model in args.models:
            report["models"].append(compare_model(model, Path(folder), args, machine))
            report["limits"] = summary(machine.log)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(tables.render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
