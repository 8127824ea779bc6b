r"""Instructions of the Arm kernels and of whole models, counted under emulation; docs/arm.md shows what it prints.

    cmake -S . -B build/arm -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux.cmake \
        -DPYINFER_PYTHON=OFF -DPYINFER_TESTS=ON -DPYINFER_BENCH=ON
    cmake --build build/arm --parallel 2
    python bench/count_instructions.py build/arm MODEL.bin [--formats q4,q8]

Counts are differences between runs that do something once more, so that start and set-up drop out. They are the same on
every machine, but for waiting threads: all runs have one. Needs qemu-aarch64 of QEMU 7.2 with plugins, and a C compiler
for this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", "max")
PANEL_ROWS = {"neon": 6, "neon_dotprod": 12, "neon_i8mm": 12}
"""Most rows of a panel, by instruction set: `kPanelRows` of its file in csrc/kernels/simd."""
FORMATS = ("q4", "q4m", "q8", "q2k", "q3k", "q4k", "q5k", "q6k", "iq4k")
STACK = ("vector-loads-from-stack", "vector-stores-to-stack")
PROMPT, DECODED = 25, 2


@dataclass(frozen=True)
class Emulator:
    """Runs programs of a build and counts."""

    plugin: Path

    def count(self, isa: str, *command: str) -> tuple[Counter[str], str]:
        """Instructions by kind, and what the program printed."""
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch) / "counts"
            options = ("-plugin", str(self.plugin), "-d", "plugin", "-D", str(log))
            done = subprocess.run(
                [*EMULATOR, *options, *command],
                env=os.environ | {"PYINFER_ISA": isa},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
            lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
        return Counter({kind: int(n) for kind, n in lines}), done.stdout


def compiled_plugin(folder: Path) -> Path:
    """The counting plugin, for this machine."""
    plugin = folder / "count_instructions.so"
    source = ROOT / "bench" / "count_instructions.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)], check=True)
    return plugin


def kernel(emulator: Emulator, program: Path, name: str) -> tuple[Counter[str], int]:
    """What one call of a kernel takes, and how many products it makes."""
    isa = name.split("/")[0]
    once, said = emulator.count(isa, str(program), name, "1")
    twice, _ = emulator.count(isa, str(program), name, "2")
    return twice - once, int(said.split()[1])


def kernel_line(emulator: Emulator, program: Path, isa: str, format_name: str) -> str:
    """Instructions for 1000 products, of one row and of a full panel: all, vector arithmetic, to and from the stack."""
    cells = [isa, format_name]
    for rows in ("cache-1-row", f"cache-{PANEL_ROWS[isa]}-rows"):
        counts, products = kernel(emulator, program, f"{isa}/matmul/{format_name}/int8/{rows}")
        for n in (counts.total(), counts["vector-arithmetic"], sum(counts[kind] for kind in STACK)):
            cells.append(f"{1000 * n / products:.1f}")
    return "| " + " | ".join(cells) + " |"


def model_line(emulator: Emulator, program: Path, isa: str, model: Path) -> str:
    """Million instructions, and the vector arithmetic among them, a token of a prompt and one decoded behind it."""
    golden = json.loads((ROOT / "tests" / "golden" / "prose.json").read_text(encoding="utf-8"))
    tokens = [str(token) for token in golden["ids"][:PROMPT]]

    def counted(n_tokens: int, n_greedy: int) -> Counter[str]:
        return emulator.count(
            isa, str(program), str(model), "int8", "f16", "", str(n_greedy), *tokens[:n_tokens]
        )[0]

    one, prompt, decoded = counted(1, 0), counted(PROMPT, 0), counted(PROMPT, DECODED)
    cells = [isa]
    for counts, n in ((prompt - one, PROMPT - 1), (decoded - prompt, DECODED)):
        cells += [f"{counts.total() / n / 1e6:.1f}", f"{counts['vector-arithmetic'] / n / 1e6:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description="instructions of the Arm kernels, counted under QEMU")
    parser.add_argument("build", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--formats", default=",".join(FORMATS))
    asked = parser.parse_args()
    run_kernel, run_model = asked.build / "bench" / "run_kernel", asked.build / "tests" / "cpp" / "run_model"
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        emulator = Emulator(compiled_plugin(Path(scratch)))
        formats = asked.formats.split(",") if asked.formats else []
        lines = [
            pool.submit(kernel_line, emulator, run_kernel, isa, name)
            for isa in PANEL_ROWS
            for name in formats
        ]
        lines += [pool.submit(model_line, emulator, run_model, isa, asked.model) for isa in PANEL_ROWS]
        for line in lines:
            print(line.result(), flush=True)


if __name__ == "__main__":
    main()
