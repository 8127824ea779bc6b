"""The C++ tests and whole models on processors that this machine is not, under QEMU's user-mode emulation.

    python tools/test_emulated.py arm|old-x86 [--build FOLDER] [--quick] [--write]

`arm` compiles for 64-bit Arm with Debian's g++-aarch64-linux-gnu, `old-x86` for this machine; FOLDER is build/arm and
build/tests unless told otherwise. Every CTest test runs on every CPU of the lists below: an instruction that a CPU has
not ends the program there. Then models run on each: the instruction set must be the one expected, the greedy tokens
those of tests/golden/emulated.json, the logits near those of this machine with float activations, and on all Arm CPUs
the same to the bit.
--write makes the golden file anew from what the CPUs say; --quick tests on each CPU its best instruction set alone, and
some suites on the first CPU only.

Needs qemu-user (and the cross compiler), and the pyinfer package with a core for this machine. Exits with 1 on the
first failure, and with 77 where a tool is missing.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "emulated.json"
PROSE = ROOT / "tests" / "golden" / "prose.json"
JOBS = 2
ONCE = {"allocations", "base", "cores", "formats", "model_file", "thread_pool", "sampling", "sampling_chain"}
ONCE |= {"adapters"}
"""C++ suites that --quick runs on the first CPU only: those that no instruction set changes, and one that takes a
minute and adds to kernels only what the whole models run as well."""
NOT_QUICK = {"forward"}
"""What takes minutes on one CPU alone; the whole models do the same."""
MAX_KL = {"f32": 1e-4, "int8": 1e-2}
"""Mean Kullback-Leibler divergence, in nats a token, of an emulated machine with such activations from this one with
floats. A float that differs in its last bit may tip an int8 to its neighbour, and a few layers on all roundings are
others: with int8 two instruction sets are as far from each other as each is from floats."""

Activations = Literal["f32", "int8"]


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
    models: tuple[str, ...] = ("stories", "smollm2")
    same_bits: bool = False
    """Whether all those instruction sets add floats in the same order."""


TARGETS = {
    "arm": Target(
        emulator="qemu-aarch64",
        build="build/arm",
        compiler="aarch64-linux-gnu-g++",
        cpus={"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"},
        configure=(f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/aarch64-linux.cmake",),
        libraries="/usr/aarch64-linux-gnu",
        same_bits=True,
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
class Run:
    """A model, the tokens it is given, and how many it is to add."""

    model: Path
    tokens: list[int]
    n_greedy: int


@dataclass
class Answer:
    """What a run came to."""

    isa: str
    greedy: list[int]
    logits: NDArray[np.float32] = field(repr=False)
    """(tokens, n_vocab)"""


def run_named(name: str) -> Run:
    """A tiny model with a story to tell, or SmolLM2 with 64 tokens of prose."""
    from pyinfer import hub

    if name == "stories":
        stories = hub.resolve(ROOT / "tests" / "data" / "stories260K.bin")
        return Run(stories, [1, 403, 407, 261, 378], 64)
    prose = json.loads(PROSE.read_text(encoding="utf-8"))["ids"][:64]
    smollm2 = hub.resolve(os.environ.get("PYINFER_SMOLLM2_GGUF") or "smollm2")
    return Run(smollm2, prose, 8)


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


def run_tests(target: Target, folder: Path, quick: bool) -> None:
    """All tests on all CPUs, several at a time."""
    first_cpu, *_ = target.cpus
    tests = tests_of(folder)
    for first in (True, False):
        with ThreadPoolExecutor(JOBS) as pool:
            due = [
                (cpu, test)
                for cpu in target.cpus
                for test in tests
                if test.first == first
                and not (
                    quick
                    and test.name.removeprefix("cpp.")
                    in (NOT_QUICK if cpu == first_cpu else ONCE | NOT_QUICK)
                )
            ]
            jobs = [pool.submit(run_test, target, cpu, test, quick) for cpu, test in due]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)


def answer(target: Target, cpu: str, program: Path, run: Run, activations: Activations) -> Answer:
    """What a model says on a CPU."""
    prefix, environment = emulated(target, cpu)
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch) / "logits"
        arguments = [str(run.model), activations, str(logits), str(run.n_greedy), *map(str, run.tokens)]
        command = [*prefix, str(program), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{run.model} on {cpu}: exit code {done.returncode}: {done.stderr}")
        isa, greedy = done.stdout.splitlines()
        values = np.fromfile(logits, "<f4").reshape(len(run.tokens), -1)
    return Answer(isa, [int(token) for token in greedy.split()], values)


def here(run: Run) -> NDArray[np.float32]:
    """The logits on this machine with float activations, (tokens, n_vocab)."""
    from pyinfer import _core

    engine = _core.Engine(_core.ModelFile(str(run.model)), JOBS, "f32")
    return _core.Session(engine, len(run.tokens)).eval(np.array(run.tokens, np.int32), "all")


def divergences(exact: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of each row's distribution from the exact one, in nats."""
    p, q = (x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (exact, other))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    kl: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return kl


def check_near(what: str, native: NDArray[np.float32], said: Answer, activations: Activations) -> None:
    """Holds logits against those of this machine."""
    kl = divergences(native, said.logits)
    print(f"{what}, {said.isa}, {activations}: KL mean {kl.mean():.2e}, greatest {kl.max():.2e}", flush=True)
    if not kl.mean() <= MAX_KL[activations]:
        raise SystemExit(
            f"{what}: expected a mean KL of at most {MAX_KL[activations]}, found {kl.mean():.2e}"
        )


def check_answers(
    name: str, target: Target, answers: dict[str, Answer], golden: dict[str, list[int]]
) -> None:
    """Holds what every CPU said against the golden tokens and each other."""
    first, *_ = answers
    for cpu, said in answers.items():
        if said.isa != target.cpus[cpu]:
            raise SystemExit(
                f"{name} on {cpu}: expected the instruction set {target.cpus[cpu]}, found {said.isa}"
            )
        if said.greedy != golden.get(said.isa):
            raise SystemExit(
                f"{name} on {cpu}: expected the tokens {golden.get(said.isa)}, found {said.greedy}"
            )
        if target.same_bits and said.logits.tobytes() != answers[first].logits.tobytes():
            raise SystemExit(f"{name} on {cpu}: expected the bits of the logits on {first}, found others")


def run_models(target: Target, folder: Path, quick: bool, write: bool) -> None:
    """Every model on every CPU, several at a time, and with float activations on one."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    program = folder / "tests" / "cpp" / "run_model"
    for name in target.models:
        run = run_named(name)
        with ThreadPoolExecutor(JOBS) as pool:
            jobs = {cpu: pool.submit(answer, target, cpu, program, run, "int8") for cpu in target.cpus}
            floats = {
                cpu: pool.submit(answer, target, cpu, program, run, "f32")
                for cpu in float_cpus(target, quick)
            }
        answers = {cpu: job.result() for cpu, job in jobs.items()}
        if write:
            golden.setdefault(name, {}).update({each.isa: each.greedy for each in answers.values()})
        check_answers(name, target, answers, golden.get(name, {}))
        native = here(run)
        for cpu, said in answers.items():
            check_near(f"{name} on {cpu}", native, said, "int8")
        for cpu, job in floats.items():
            check_near(f"{name} on {cpu}", native, job.result(), "f32")
    if write:
        lines = [f"{json.dumps(name)}: {{\n{tokens_text(by_isa)}\n}}" for name, by_isa in golden.items()]
        GOLDEN.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def float_cpus(target: Target, quick: bool) -> list[str]:
    """Where models run with float activations too: on the last CPU, or nowhere if there is no time."""
    return [] if quick else list(target.cpus)[-1:]


def tokens_text(by_isa: dict[str, list[int]]) -> str:
    """A line an instruction set."""
    return ",\n".join(f"  {json.dumps(isa)}: {json.dumps(tokens)}" for isa, tokens in sorted(by_isa.items()))


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
    steps: dict[str, Callable[[], None]] = {
        "build": lambda: build(target, folder),
        "tests": lambda: run_tests(target, folder, asked.quick),
        "models": lambda: run_models(target, folder, asked.quick, asked.write),
    }
    for name, step in steps.items():
        start, cpu_start = time.monotonic(), cpu_seconds()
        step()
        took, busy = time.monotonic() - start, cpu_seconds() - cpu_start
        print(f"{asked.target}: {name} took {took:.0f} s, {busy:.0f} s of CPU", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
