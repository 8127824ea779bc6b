"""What is measured. Standard library only, because the interpreters of peers import it too.

The name of a case says all of it:

    prefill-512       one prompt of 512 tokens into an empty context
    decode-128        128 tokens, one at a time, into an empty context
    decode-32@4096    32 tokens, one at a time, behind 4096 that are there already
    batch-8           32 steps of 8 sequences at once, each behind 32 tokens
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

DEFAULT = "prefill-512,decode-128,prefill-2048,decode-32@4096,batch-1,batch-4,batch-8,batch-16"
BATCH_STEPS = 32
BATCH_DEPTH = 32


@dataclass(frozen=True)
class Case:
    """One thing to measure: `tokens` new tokens for each of `sequences` sequences behind `depth` old ones."""

    name: str
    kind: Literal["prefill", "decode", "batch"]
    tokens: int
    depth: int = 0
    sequences: int = 1

    @property
    def capacity(self) -> int:
        """Positions that each sequence needs."""
        return self.depth + self.tokens


def parse(name: str) -> Case:
    """The case of this name; ValueError if there is none."""
    if match := re.fullmatch(r"prefill-([1-9]\d*)", name):
        return Case(name, "prefill", int(match[1]))
    if match := re.fullmatch(r"decode-([1-9]\d*)(?:@(\d+))?", name):
        return Case(name, "decode", int(match[1]), int(match[2] or 0))
    if match := re.fullmatch(r"batch-([1-9]\d*)", name):
        return Case(name, "batch", BATCH_STEPS, BATCH_DEPTH, int(match[1]))
    raise ValueError(f"expected prefill-N, decode-N, decode-N@DEPTH or batch-N, found {name}")


def random_tokens(n: int, n_vocab: int) -> list[int]:
    """The same ordinary tokens for every engine; the first one begins a text in the random models."""
    source = random.Random(7)
    first = min(300, n_vocab // 2)
    return [1] + [first + int(source.random() * (n_vocab - first)) for _ in range(n - 1)]
