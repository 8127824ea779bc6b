"""The scripts that measure adapters, on a model of 260 thousand weights: that they measure what they say."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

import adapter_cost
import attach
import make_adapter
from pyinfer import Adapter, convert, load

STORIES = Path(__file__).parents[1] / "tests" / "data" / "stories260K.bin"


@pytest.fixture
def model_bin(tmp_path: Path) -> Path:
    convert.convert(STORIES, tmp_path / "stories.bin", weights="q8")
    return tmp_path / "stories.bin"


def test_both_kinds_of_files_hold_the_same_values(model_bin: Path, tmp_path: Path) -> None:
    with load(model_bin, threads=1) as model:
        shape = attach.shape_of(model)
        gguf = make_adapter.write(shape, 4, tmp_path / "a.gguf")
        peft = make_adapter.write_peft(shape, 4, tmp_path / "a")
        bare = model.logits([1, 403, 7])
        for path in (gguf, peft):
            assert np.abs(model.logits([1, 403, 7], adapters=[path]) - bare).max() > 0.01
        changes = [Adapter.load(path).source.changes for path in (gguf, peft)]
        assert len(changes[0]) == len(changes[1]) == 7 * shape.n_layers
        twins = {(change.role, change.layer): change for change in changes[1]}
        for change in changes[0]:
            twin = twins[change.role, change.layer]
            assert np.array_equal(change.a, twin.a) and np.array_equal(change.b, twin.b)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="private memory is told by /proc")
@pytest.mark.parametrize("peft", [False, True])
def test_attaching_is_measured(model_bin: Path, peft: bool) -> None:
    with load(model_bin, threads=1, context=16) as model:
        found = attach.measure(model, rank=8, repeats=2, peft=peft)
    for one in found:
        assert one["attach_s"] == pytest.approx(one["read_s"] + one["pack_s"])
        assert one["base_mapped_mb"] * 1e6 >= model_bin.stat().st_size
        assert one["base_private_mb"] == 0
        assert one["logits_differ_by"] > 0
        assert one["private_after_mb"] - one["private_before_mb"] < 20


def test_costs_are_measured(model_bin: Path) -> None:
    options = argparse.Namespace(threads=1, rank=4, rounds=2)
    found = adapter_cost.measure(model_bin, options)
    assert 0 < found["bytes_share"] < 1 and found["batch_keeps"] > 0
    assert found["decode_cost_over_bytes"] == pytest.approx(found["decode_cost"] / found["bytes_share"])
