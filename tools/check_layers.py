"""Holds the list "Who may know whom" of ARCHITECTURE.md against the sources: one line a breach, exit code 1 if any.

Reads text only: include lines and code without comments for C++, the syntax tree for Python. Knows nothing of what the
code does.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CORE_MAY_KNOW = {
    "base": set(),
    "formats": {"base"},
    "kernels": {"base", "formats"},
    "nn": {"base", "formats", "kernels"},
    "model": {"base", "formats", "kernels", "nn"},
    "engine": {"base", "formats", "kernels", "nn", "model"},
    "sampling": {"base"},
    "api": {"base", "formats", "kernels", "nn", "model", "engine", "sampling"},
}
"""A folder of csrc -> the other folders that it may include."""

OS_HEADERS = {"unistd.h", "fcntl.h", "sched.h", "pthread.h", "dlfcn.h", "signal.h", "dirent.h", "cpuid.h"}
OS_HEADERS |= {"windows.h", "psapi.h", "thread", "filesystem", "fstream"}
INTRINSIC_HEADERS = re.compile(r"^(\w*mmintrin|x86intrin|arm_neon|arm_sve|arm_acle)\.h$")
INTRINSIC_NAMES = re.compile(
    r"\b(_mm\d*_\w+|__m(128|256|512)[id]?|__mmask\d+|v[a-z0-9]+_(lane_)?[fsup](8|16|32|64)|u?int\d+x\d+_t)\b"
)
ENDING_CALLS = re.compile(r"\b(abort|exit|_exit|quick_exit|terminate|assert)\s*\(")
PRINTING = re.compile(r"\b(f?printf|puts|putchar|perror)\s*\(|\bstd::(cout|cerr|clog)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
COMMENTS_AND_STRINGS = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def core_sources() -> Iterator[tuple[Path, str]]:
    """Every C++ file of the core and its text."""
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in {".h", ".cpp", ".inc"}:
            yield path, path.read_text(encoding="utf-8")


def core_breaches(path: Path, text: str) -> Iterator[str]:
    """What one C++ file includes or calls against the list."""
    inside = path.relative_to(ROOT / "csrc")
    folder = inside.parts[0]
    for name in INCLUDE.findall(text):
        yield from include_breaches(folder, inside, name)
    code = COMMENTS_AND_STRINGS.sub(" ", text)
    if inside.parts[:2] != ("kernels", "simd") and (found := INTRINSIC_NAMES.search(code)):
        yield f"uses {found.group()}: intrinsics belong in kernels/simd"
    if found := PRINTING.search(code):
        yield f"uses {found.group()}: the core does not print"
    if found := ENDING_CALLS.search(code):
        yield f"calls {found.group(1)}: the core reports errors, it does not end the process"


def include_breaches(folder: str, inside: Path, name: str) -> Iterator[str]:
    """What one include line breaks."""
    target = name.split("/")[0]
    if target in CORE_MAY_KNOW and target != folder and target not in CORE_MAY_KNOW.get(folder, set()):
        yield f"includes {name}: {folder} must not know {target}"
    if INTRINSIC_HEADERS.match(name) and inside.parts[:2] != ("kernels", "simd"):
        yield f"includes <{name}>: intrinsics belong in kernels/simd"
    if (name in OS_HEADERS or name.startswith(("sys/", "mach/"))) and folder != "base":
        yield f"includes <{name}>: the system belongs in base"
    if (target == "pybind11" or name == "Python.h") and folder != "api":
        yield f"includes <{name}>: pybind11 belongs in api"
    if "json" in name.lower():
        yield f"includes <{name}>: JSON is read in Python only"


PYTHON_MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "arguments": {"errors"},
    "_core": set(),
    "cache": {"errors", "files"},
    "fetch": {"errors"},
    "files": set(),
    "memory": {"errors", "_core"},
    "fitting": {"arguments", "errors", "memory", "_core"},
    "stopping": {"errors"},
    "template": {"errors"},
    "sampling": {"arguments", "errors", "_core"},
    "timeline": {"errors", "_core"},
    "tokenizer_json": {"errors"},
    "vocabulary": {"errors", "tokenizer_json"},
    "convert": {"errors", "_core", "files", "tokenizer_json", "vocabulary"},
    "tokenizer": {"errors", "_core", "convert", "vocabulary"},
    "adapters": {"arguments", "errors", "_core", "convert"},
    "stack": {"errors", "_core", "adapters", "convert"},
    "completion": {"errors", "sampling"},
    "hub": {"errors", "cache", "convert", "fetch"},
    "capi": {"errors", "_core"},
}
"""A module or folder of pyinfer -> the others that it may import; what is not listed may import all but `cli`."""
PRINTS = {"print", "input", "breakpoint"}


def python_sources() -> Iterator[Path]:
    """Every Python file of the package."""
    return iter(sorted((ROOT / "pyinfer").rglob("*.py")))


def every_part() -> set[str]:
    """Top-level modules and folders of the package."""
    return {
        path.stem for path in (ROOT / "pyinfer").iterdir() if path.suffix in {".py", ".pyi"} or path.is_dir()
    }


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a module imports, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def python_breaches(path: Path, families: set[str]) -> Iterator[str]:
    """What one Python module imports, prints or names against the list."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    top = parts[1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    may_know = PYTHON_MAY_KNOW.get(top, every_part() - {"cli"}) | {top}
    for name in imported(tree, parts[:-1]):
        target = name.split(".")[1] if name.startswith("pyinfer.") else ""
        if target in every_part() and target not in may_know and top not in {"cli", "__main__"}:
            yield f"imports {name}: {top} must not know {target}"
    if top != "cli":
        yield from prints(tree)
    if "families" not in parts:
        yield from family_names(tree, families)


def prints(tree: ast.AST) -> Iterator[str]:
    """Calls that talk to a terminal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PRINTS:
            yield f"line {node.lineno} calls {node.func.id}: only cli talks to a terminal"


def family_names(tree: ast.AST, families: set[str]) -> Iterator[str]:
    """Comparisons with a family's name."""
    for node in ast.walk(tree):
        leaves = ast.walk(node) if isinstance(node, ast.Compare) else ()
        for leaf in leaves:
            if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and leaf.value in families:
                yield f"line {leaf.lineno} compares with {leaf.value!r}: only convert/families knows families"


def family_files() -> set[str]:
    """The names of the files that open checkpoints of a family; what they share has no such function."""
    files = (ROOT / "pyinfer/convert/families").glob("*.py")
    return {path.stem for path in files if "\ndef from_" in path.read_text(encoding="utf-8")}


def main() -> int:
    """Prints every breach; 1 if there is one."""
    families = family_files()
    breaches = [(path, what) for path, text in core_sources() for what in core_breaches(path, text)]
    breaches += [(path, what) for path in python_sources() for what in python_breaches(path, families)]
    for path, what in breaches:
        print(f"{path.relative_to(ROOT)}: {what}")
    n_files = sum(1 for _ in core_sources()) + sum(1 for _ in python_sources())
    print(f"layers: {n_files} files, {len(breaches)} breaches")
    return 1 if breaches or not n_files else 0


if __name__ == "__main__":
    sys.exit(main())
