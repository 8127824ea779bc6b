"""The C++ tests and whole models on processors that this machine is not, under QEMU's user-mode emulation.

    python tools/test_emulated.py arm|old-x86 [--build FOLDER] [--quick] [--write]

`arm` compiles for 64-bit Arm with Debian's g++-aarch64-linux-gnu, `old-x86` for this machine; FOLDER is build/arm and
build/tests unless told otherwise. Models run on every CPU of the lists below: the instruction set must be the one
expected, the greedy tokens and the bits of all logits those of tests/golden/bits.json, which hold on every processor;
FOLDER/models-agree is there afterwards. Then every CTest test runs on each: an instruction that a CPU has not ends the
program there.
--write makes that file anew from what the first CPU says; --quick tests on each CPU its best instruction set alone,
some suites on the first CPU only or not at all (those of kernels too where this machine has the set itself), and models
with int8 activations only, the large one on the last CPU.

Needs qemu-user (and the cross compiler), and the pyinfer package with a core for this machine. Exits with 1 on the
first failure, and with 77 where a tool is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "bits.json"
JOBS = 2
ONCE = {"allocations", "base", "cores", "formats", "model_file", "thread_pool", "sampling", "sampling_chain"}
"""C++ suites that --quick runs on the first Arm CPU only: those that no instruction set changes."""
NOT_QUICK = {"forward", "adapters"}
"""What takes minutes on one CPU alone; their kernels have suites of their own, and whole models run as well."""
KERNELS = {"attend", "matmul", "rows"}
"""Suites that --quick leaves out, but on the first CPU, where this machine has the instruction set: CTest runs them."""

LARGE = "smollm2"
"""The model that takes minutes on each CPU."""

Kind = Literal["f32 f16", "int8 f16", "int8 i16"]
"""Activations, and keys and values."""


@dataclass(frozen=True)
class Target:
    """What one kind of machine is built and run with."""

    emulator: str
    build: str
    compiler: str
    cpus: dict[str, str]
    """QEMU's name of a CPU -> the instruction set that must be chosen there."""
    configure: tuple[str, ...] = ()
    libraries: str = ""
    """Where QEMU finds the libraries of that machine; empty: they are this machine's."""
    models: tuple[str, ...] = ("stories", LARGE)


TARGETS = {
    "arm": Target(
        emulator="qemu-aarch64",
        build="build/arm",
        compiler="aarch64-linux-gnu-g++",
        cpus={"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"},
        configure=(f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/aarch64-linux.cmake",),
        libraries="/usr/aarch64-linux-gnu",
    ),
    "old-x86": Target(
        emulator="qemu-x86_64",
        build="build/tests",
        compiler="c++",
        cpus={"Nehalem": "scalar", "Haswell": "avx2"},
        models=("stories",),
    ),
}


@dataclass(frozen=True)
class Golden:
    """What a model says on every processor; written out in tests/golden/bits.json."""

    tokens: list[int]
    """What it is given."""
    greedy: list[int]
    """The most likely tokens behind it."""
    sha256: dict[Kind, str]
    """Of the logits behind each given token, (tokens, n_vocab) float32 of little end first."""


@dataclass(frozen=True)
class Answer:
    """What a run came to."""

    isa: str
    greedy: list[int]
    sha256: str


def model_named(name: str) -> Path:
    """The model.bin of a tiny teller of stories in q4, or of SmolLM2."""
    from pyinfer import hub

    if name == "stories":
        return hub.resolve(ROOT / "tests" / "data" / "stories260K.bin", weights="q4")
    return hub.resolve(os.environ.get("PYINFER_SMOLLM2_GGUF") or "smollm2")


def call(*command: str | Path) -> None:
    """A command that must succeed; what it says is shown only if it does not."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")


def build(target: Target, folder: Path) -> None:
    """Compiles the core, its tests and the C interface without Python."""
    options = ("-DPYINFER_PYTHON=OFF", "-DPYINFER_TESTS=ON", *target.configure)
    call("cmake", "-S", ROOT, "-B", folder, *options)
    call("cmake", "--build", folder, "--parallel", str(JOBS))


def emulated(target: Target, cpu: str) -> tuple[list[str], dict[str, str]]:
    """What stands before a command, and the environment it runs in."""
    prefix = [target.emulator, *(["-L", target.libraries] if target.libraries else []), "-cpu", cpu]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYINFER_")}
    return prefix, environment | {"PYINFER_TEST_EMULATOR": " ".join(prefix)}


@dataclass(frozen=True)
class Test:
    """One of CTest's tests that runs a program of the build."""

    name: str
    command: list[str]
    first: bool
    """Whether others need what it leaves behind."""
    expected: str
    """A regular expression for what it says; empty: it must exit with 0."""


def tests_of(folder: Path) -> list[Test]:
    """CTest's own list."""
    command = ["ctest", "--test-dir", str(folder), "--show-only=json-v1"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tests = []
    for test in json.loads(listed)["tests"]:
        properties = {each["name"]: each["value"] for each in test["properties"]}
        if Path(test["command"][0]).is_relative_to(folder):
            expected = "|".join(properties.get("PASS_REGULAR_EXPRESSION", ()))
            tests.append(Test(test["name"], test["command"], "FIXTURES_SETUP" in properties, expected))
    if not tests:
        raise SystemExit(f"{folder}: expected tests of CTest, found none")
    return tests


def run_test(target: Target, cpu: str, test: Test, quick: bool) -> None:
    """One test on one CPU; ends the program if it fails."""
    start = time.monotonic()
    prefix, environment = emulated(target, cpu)
    if quick:
        environment["PYINFER_ISA"] = target.cpus[cpu]
    command = [*prefix, *test.command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = any(re.search(test.expected, text) for text in (done.stdout, done.stderr))
    passed = told if test.expected else done.returncode == 0
    print(f"{cpu:10}  {test.name:22} {time.monotonic() - start:6.1f} s", flush=True)
    if not passed:
        raise SystemExit(
            f"{test.name} on {cpu}: failed with exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )


def left_out(target: Target, cpu: str) -> set[str]:
    """The C++ suites that --quick does not run on a CPU."""
    from pyinfer import _core

    first, *_ = target.cpus
    if cpu == first:  # without libraries of its own the programs are this machine's, and CTest runs them
        return NOT_QUICK if target.libraries else NOT_QUICK | ONCE
    here = {name for name, runs in _core.isas() if runs}
    return NOT_QUICK | ONCE | (KERNELS if target.cpus[cpu] in here else set())


def run_tests(target: Target, folder: Path, quick: bool) -> None:
    """All tests on all CPUs, several at a time."""
    tests = tests_of(folder)
    for first in (True, False):
        with ThreadPoolExecutor(JOBS) as pool:
            due = [
                (cpu, test)
                for cpu in target.cpus
                for test in tests
                if test.first == first
                and not (quick and test.name.removeprefix("cpp.") in left_out(target, cpu))
            ]
            jobs = [pool.submit(run_test, target, cpu, test, quick) for cpu, test in due]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)


def answer(target: Target, cpu: str, program: Path, model: Path, golden: Golden, kind: Kind) -> Answer:
    """What a model says on a CPU."""
    prefix, environment = emulated(target, cpu)
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch) / "logits"
        numbers = [len(golden.greedy), *golden.tokens]
        command = [*prefix, program, model, *kind.split(), logits, *numbers]
        done = subprocess.run(
            [str(word) for word in command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{model} on {cpu}: exit code {done.returncode}: {done.stderr}")
        isa, greedy = done.stdout.splitlines()
        return Answer(
            isa, [int(token) for token in greedy.split()], hashlib.sha256(logits.read_bytes()).hexdigest()
        )


def check_answer(where: str, isa: str, said: Answer, golden: Golden, kind: Kind) -> None:
    """Holds what a CPU said against what every one must say."""
    if said.isa != isa:
        raise SystemExit(f"{where}: expected the instruction set {isa}, found {said.isa}")
    if kind == "int8 f16" and said.greedy != golden.greedy:
        raise SystemExit(f"{where}: expected the tokens {golden.greedy}, found {said.greedy}")
    if said.sha256 != golden.sha256[kind]:
        raise SystemExit(f"{where}: expected logits of SHA-256 {golden.sha256[kind]}, found {said.sha256}")
    print(f"{where}, {isa}, {kind}: the golden tokens and bits", flush=True)


def kinds_of(name: str, quick: bool) -> tuple[Kind, ...]:
    """What is held against the golden bits; of the large model not all where time is short."""
    if not quick:
        return ("int8 f16", "int8 i16", "f32 f16")
    return ("int8 f16",) if name == LARGE else ("int8 f16", "int8 i16")


def run_models(target: Target, folder: Path, quick: bool, write: bool) -> None:
    """Every model on every CPU, several at a time."""
    every = {
        name: Golden(**golden) for name, golden in json.loads(GOLDEN.read_text(encoding="utf-8")).items()
    }
    program = folder / "tests" / "cpp" / "run_model"
    quick = quick and not write
    for name in target.models:
        model, kinds = model_named(name), kinds_of(name, quick)
        cpus = list(target.cpus)[-1:] if quick and name == LARGE else list(target.cpus)
        with ThreadPoolExecutor(JOBS) as pool:
            jobs = {
                (cpu, kind): pool.submit(answer, target, cpu, program, model, every[name], kind)
                for kind in kinds
                for cpu in cpus
            }
        answers = {at: job.result() for at, job in jobs.items()}
        if write:
            first, *_ = target.cpus
            bits: dict[Kind, str] = {kind: answers[first, kind].sha256 for kind in kinds}
            every[name] = Golden(every[name].tokens, answers[first, "int8 f16"].greedy, bits)
        for (cpu, kind), said in answers.items():
            check_answer(f"{name} on {cpu}", target.cpus[cpu], said, every[name], kind)
    if write:
        GOLDEN.write_text(golden_text(every), encoding="utf-8")
    (folder / "models-agree").touch()


def golden_text(every: dict[str, Golden]) -> str:
    """A line a field."""
    models = []
    for name, golden in every.items():
        fields = [f"  {json.dumps(field)}: {json.dumps(value)}" for field, value in asdict(golden).items()]
        models.append(f"{json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n}")
    return "{" + ",\n".join(models) + "}\n"


def cpu_seconds() -> float:
    """What the programs started here have used so far."""
    used = os.times()
    return used.children_user + used.children_system


def main() -> int:
    """Builds, tests, runs; says how long each took."""
    parser = argparse.ArgumentParser(description="C++ tests and models on emulated processors")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--build", type=Path, help="build folder")
    parser.add_argument("--quick", action="store_true", help="each CPU with its best instruction set alone")
    parser.add_argument(
        "--write", action="store_true", help="write the golden tokens instead of expecting them"
    )
    asked = parser.parse_args()
    target = TARGETS[asked.target]
    folder = (asked.build or ROOT / target.build).resolve()
    for tool in (target.emulator, target.compiler, "cmake"):
        if shutil.which(tool) is None:
            print(f"{asked.target}: expected {tool} in PATH, found none", file=sys.stderr)
            return 77
    steps: dict[str, Callable[[], None]] = {  # what says most comes first, should time run out
        "build": lambda: build(target, folder),
        "models": lambda: run_models(target, folder, asked.quick, asked.write),
        "tests": lambda: run_tests(target, folder, asked.quick),
    }
    for name, step in steps.items():
        start, cpu_start = time.monotonic(), cpu_seconds()
        step()
        took, busy = time.monotonic() - start, cpu_seconds() - cpu_start
        print(f"{asked.target}: {name} took {took:.0f} s, {busy:.0f} s of CPU", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
