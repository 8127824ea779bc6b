"""Asks the package index, by pip, whether the base install has wheels everywhere.

    python tools/check_dependencies.py

For each platform and Python version of docs/install.md the dependencies of pyproject.toml are resolved from wheels
alone, as a machine without a compiler would do it. Needs the network; nothing is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PLATFORMS = {
    "Linux x86-64 (glibc)": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
    "Linux aarch64 (glibc)": ["manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"],
    "Linux x86-64 (musl)": ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"],
    "Linux aarch64 (musl)": ["musllinux_1_2_aarch64", "musllinux_1_1_aarch64"],
    "macOS arm64": [
        "macosx_14_0_arm64",
        "macosx_11_0_arm64",
        "macosx_11_0_universal2",
        "macosx_10_9_universal2",
    ],
    "macOS x86-64": [
        f"macosx_{version}_x86_64" for version in ("14_0", "11_0", "10_15", "10_13", "10_12", "10_9")
    ],
    "Windows x86-64": ["win_amd64"],
}
VERSIONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def base_dependencies() -> list[str]:
    """The `dependencies` of pyproject.toml."""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', found.group(1)) if found else []


def resolve(platforms: list[str], version: str, dependencies: list[str]) -> str:
    """What pip says against it; nothing if all can be had as wheels."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", version]
    for platform in platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, "--target", "unused", *dependencies], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return "" if done.returncode == 0 else (errors or ["ERROR: pip failed"])[-1]


def main() -> int:
    """Prints a line a platform; 1 if wheels are missing."""
    dependencies = base_dependencies()
    print(f"base dependencies: {', '.join(dependencies)}")
    missing = 0
    for name, platforms in PLATFORMS.items():
        wrong = {version: said for version in VERSIONS if (said := resolve(platforms, version, dependencies))}
        missing += len(wrong)
        print(
            f"{name:24}"
            + "  ".join(f"{version} {'no' if version in wrong else 'yes'}" for version in VERSIONS)
        )
        for version, said in wrong.items():
            print(f"  {version}: {said}")
    return 1 if missing or not dependencies else 0


if __name__ == "__main__":
    sys.exit(main())
