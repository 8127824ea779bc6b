"""Logits of tiny random models of every shape and block type against the float64 reference, on every instruction set.

Two comparisons. With float32 activations the engine differs from the reference by rounding only. With int8 activations
the reference quantises too; then both agree but where a value falls so close between two integers that float32 rounding
decides: such a run is as far off as one step of one activation, and about one short run in ten has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from probing import ISAS, probe_logits
from pyinfer import _core
from reference import gguf, llama
from reference.llama import Rounding, Weights, kl
from tiny_models import SHAPES, TYPE_SHAPES, Shape, named, tokens

Tiny = Callable[[Shape], tuple[Path, Path]]
LONG = 150  # tokens: more than two pages of the cache
RUNS, SHORT = 12, 3  # many short runs of different tokens, so that many have no value between two integers
MOST_KL = 1e-6  # mean over positions, rounding of the cache to halves included
TYPICAL_KL = 1e-8  # of a run in which nothing falls between two integers


def weights_of(shape: Shape, tiny: Tiny) -> Weights:
    """The source's weights."""
    return llama.from_gguf(gguf.read(tiny(shape)[0]))


def in_memory(weights: Weights) -> Weights:
    """The same weights, each dequantised once."""
    return Weights(weights.spec, weights.frequencies, cache(weights.tensor), weights.is_quantized)


def float32_bound(weights: Weights, ids: list[int], rounding: Rounding) -> float:
    """How far logits go when every linear output is off by the bound of a float32 sum, cols * 2^-24 * sum|a b|."""
    exact = llama.logits(weights, ids, rounding)
    noisy = [llama.logits(weights, ids, replace(rounding, float32_noise=seed)) for seed in (1, 2)]
    return max(float(np.abs(exact - other).max()) for other in noisy)


@pytest.mark.parametrize("shape", SHAPES + TYPE_SHAPES, ids=lambda s: s.name)
def test_float32_activations_meet_the_reference(shape: Shape, tiny: Tiny) -> None:
    weights, ids = in_memory(weights_of(shape, tiny)), tokens(shape, LONG)
    engine = _core.Engine(_core.ModelFile(str(tiny(shape)[1])), 2, "f32")
    ours = _core.Session(engine, LONG).eval(np.array(ids, np.int32), "all")
    rounding = Rounding(f16_cache=True)
    exact = llama.logits(weights, ids, rounding)
    assert kl(exact, ours).mean() <= MOST_KL
    assert np.abs(exact - ours).max() <= float32_bound(weights, ids, rounding)


@pytest.mark.parametrize("shape", SHAPES + TYPE_SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("kv", ["f16", "i16"])
def test_int8_activations_meet_the_reference(shape: Shape, kv: Literal["f16", "i16"], tiny: Tiny) -> None:
    weights = in_memory(weights_of(shape, tiny))
    engine = _core.Engine(_core.ModelFile(str(tiny(shape)[1])), 2, "int8")
    off, step = [], []
    for seed in range(RUNS):
        ids = [int(i) for i in np.random.default_rng(seed).integers(0, shape.n_vocab, SHORT)]
        ours = _core.Session(engine, SHORT, kv).eval(np.array(ids, np.int32), "all")
        rounding = Rounding(int8_activations=True, f16_cache=kv == "f16", i16_cache=kv == "i16")
        simulated = llama.logits(weights, ids, rounding)
        off.append(kl(simulated, ours).max())
        step.append(kl(llama.logits(weights, ids), simulated).max())
    assert np.quantile(off, 0.25) <= TYPICAL_KL  # wrong arithmetic would show in every run
    assert max(off) <= 4 * max(*step, MOST_KL)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("activations", "kv"), [("int8", "f16"), ("int8", "i16"), ("f32", "f16"), ("f32", "i16")]
)
def test_every_instruction_set_computes_the_same_model(
    isa: str, activations: str, kv: str, tiny: Tiny, tmp_path: Path
) -> None:
    shape = named("mixed_types")
    weights, ids = in_memory(weights_of(shape, tiny)), tokens(shape, LONG)
    answer = probe_logits(tiny(shape)[1], ids, tmp_path, isa, activations, kv, threads=(2,), chunks=(64,))
    exact = llama.logits(weights, ids, Rounding(activations == "int8", kv == "f16", kv == "i16"))
    off = kl(exact, answer.logits)
    assert answer.isa == isa
    assert off[:SHORT].max() <= MOST_KL
    assert off.mean() <= (MOST_KL if activations == "f32" else kl(llama.logits(weights, ids), exact).mean())
