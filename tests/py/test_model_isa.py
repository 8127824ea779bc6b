"""PYINFER_ISA: the forced instruction set is the active one, anything else is an error that lists those that exist."""

from __future__ import annotations

import pytest

from probing import ISAS, run_python
from pyinfer import _core

ACTIVE = "import pyinfer._core as c; print(c.active_isa())"


def test_the_list_has_scalar_and_marks_what_runs_here() -> None:
    assert _core.isas()[0] == ("scalar", True)
    assert len({name for name, _ in _core.isas()}) == len(_core.isas())


@pytest.mark.parametrize("isa", ISAS)
def test_the_forced_one_is_the_active_one(isa: str) -> None:
    done = run_python("-c", ACTIVE, isa=isa)
    assert (done.returncode, done.stdout.strip()) == (0, isa)


def test_without_a_word_the_best_is_active() -> None:
    assert run_python("-c", ACTIVE).stdout.strip() == ISAS[-1]


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "scalar,avx2", " "])
def test_an_unknown_one_is_refused_by_name(isa: str) -> None:
    done = run_python("-c", ACTIVE, isa=isa)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "PYINFER_ISA" in last and isa in last and all(name in last for name in ISAS)


def test_one_that_this_cpu_lacks_is_refused() -> None:
    lacking = [name for name, runs_here in _core.isas() if not runs_here]
    if not lacking:
        pytest.skip("this CPU runs all of them")
    for isa in lacking:
        done = run_python("-c", ACTIVE, isa=isa)
        assert done.returncode != 0 and isa in done.stderr and "scalar" in done.stderr
