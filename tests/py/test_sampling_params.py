from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from pyinfer.errors import RequestError
from pyinfer.sampling import SamplingFields, SamplingParams, merged

NUMBERS = [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
]
WHOLE = ["top_k", "penalty_window", "seed"]


@pytest.mark.parametrize("name", NUMBERS + WHOLE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e9, 1e30, "1", b"1", True, [], 1j])
def test_a_value_outside_its_limits_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: expected a .*number from .* to .*, found ") as error:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_limits_are_told_exactly() -> None:
    with pytest.raises(
        RequestError, match=f"^seed: expected a whole number from 0 to {2**64 - 1}, found {2**64}$"
    ):
        SamplingParams(seed=2**64)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_no_fractions(name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}: expected a whole number"):
        SamplingParams(**{name: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "repetition_penalty"])
def test_none_is_no_number(name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}: "):
        SamplingParams(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bias",
    [
        None,
        [1],
        {-1: 0.0},
        {1.5: 0.0},
        {"a": 0.0},
        {True: 0.0},
        {1: math.nan},
        {1: math.inf},
        {1: 1001},
        {1: None},
        {1: "x"},
    ],
)
def test_bad_logit_bias_is_refused(bias: object) -> None:
    with pytest.raises(RequestError, match=r"^logit_bias"):
        SamplingParams(logit_bias=bias)  # type: ignore[arg-type]


def test_limits_themselves_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=0, min_p=0, typical_p=0, repetition_penalty=0.01, seed=0)
    SamplingParams(temperature=100, top_p=1, min_p=1, typical_p=1, repetition_penalty=100, seed=2**64 - 1)
    SamplingParams(presence_penalty=-100, frequency_penalty=100, penalty_window=1 << 20, top_k=2**31 - 1)
    SamplingParams(logit_bias={0: -math.inf, 1: 1000, 2: -1000})


def test_numbers_of_other_packages_become_pythons() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        logit_bias={np.int32(3): np.float16(-2)},  # type: ignore[dict-item]
    )
    assert params == SamplingParams(temperature=0.5, top_k=5, top_p=0.5, seed=2**64 - 1, logit_bias={3: -2})
    kinds = [type(value) for value in (params.temperature, params.top_k, params.top_p, params.seed)]
    assert kinds == [float, int, float, int]
    assert {type(token) for token in params.logit_bias} == {int}


@pytest.mark.parametrize("value", [np.bool_(True), np.float32("nan"), np.array(1), Fraction(10**400)])
def test_of_other_packages_numbers_within_limits_only(value: object) -> None:
    for name in ("temperature", "seed"):
        with pytest.raises(RequestError, match=rf"^{name}: expected a .*number from 0 to "):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_a_number_that_is_too_long_to_be_printed_is_told_by_its_size() -> None:
    with pytest.raises(RequestError, match=r"^seed: .*, found a number of 16610 bits$"):
        SamplingParams(seed=10**5000)
    with pytest.raises(RequestError, match=r"^logit_bias: .*, found a number of 16610 bits$"):
        SamplingParams(logit_bias={10**5000: 1.0})


def test_parameters_are_values() -> None:
    params = SamplingParams(top_k=5, logit_bias={3: 1})
    assert copy.deepcopy(params) == params == pickle.loads(pickle.dumps(params))
    assert {params: 1}[params] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 6  # type: ignore[misc]


def test_later_changes_of_the_mapping_do_not_reach_the_parameters() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = math.nan
    assert params.logit_bias == {1: 2.0}


def test_seed_is_drawn_once() -> None:
    seeds = {SamplingParams().with_seed().seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert SamplingParams(seed=0).with_seed().seed == 0


def test_single_fields_win_over_params() -> None:
    assert merged(SamplingParams(top_k=3, seed=1), {"top_k": 4}) == SamplingParams(top_k=4, seed=1)
    assert merged(None, {}) == SamplingParams()


def test_every_field_can_be_a_keyword() -> None:
    assert set(SamplingFields.__annotations__) == {item.name for item in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize(
    ("params", "changes"), [(None, {"tempreature": 1}), ({"top_k": 1}, {}), ("greedy", {})]
)
def test_unknown_parameters_are_refused(params: object, changes: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="expected"):
        merged(params, changes)  # type: ignore[arg-type]


def test_the_core_gets_every_field() -> None:
    core = SamplingParams(seed=7, logit_bias={1: 2}).for_core()
    assert set(core) == {item.name for item in dataclasses.fields(SamplingParams)}
    with pytest.raises(RequestError, match=r"^seed: "):
        SamplingParams().for_core()
