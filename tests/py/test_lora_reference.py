"""The float64 reference of adapters meets PEFT on every setting, so that the product may be held against either."""

from __future__ import annotations

import numpy as np
import pytest

from lora_golden import CASES, GROWN, Case, base_weights, named
from reference.llama import kl

MOST_KL = 1e-10  # PEFT computes in float32
PLAIN = (
    "untied",
    "tied",
    "alora_uninvoked",
    "stack_zero",
    "stack_cancels",
)  # in these an adapter changes nothing


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in GROWN], ids=lambda case: case.name)
def test_reference_meets_peft(case: Case) -> None:
    assert kl(case.exact(base_weights(case.tied)), case.peft).max() <= MOST_KL


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in (*PLAIN, *GROWN)], ids=lambda case: case.name
)
def test_every_adapter_shows_in_the_logits(case: Case) -> None:
    bare = Case("bare", case.tied, (), case.tokens).exact(base_weights(case.tied))
    assert kl(bare, case.peft).mean() >= 1e-3


def test_stack_of_nothing_is_the_base() -> None:
    bare = named("untied").exact(base_weights(False))
    for name in ("stack_zero", "stack_cancels"):
        assert np.abs(named(name).exact(base_weights(False)) - bare).max() <= 1e-12
