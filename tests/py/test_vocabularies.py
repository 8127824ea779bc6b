"""Real vocabularies, as llama.cpp publishes them with vectors: the same ids, and the text back."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_writer import byte_alphabet
from pyinfer.convert.gguf import read_gguf
from pyinfer.convert.gguf_tokenizer import tokenizer_from_keys
from pyinfer.errors import UnsupportedError
from pyinfer.tokenizer import Tokenizer
from test_tokenizer import opened

VERIFIED = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2",
    "qwen35", "refact", "starcoder",
)  # fmt: skip
REFUSED = {
    "aquila": r"tokenizer\.ggml\.pre: expected the name of a pre-tokenizer, found no such key",
    "bert-bge": r"tokenizer\.ggml\.model: expected one of llama, gpt2, none; found 'bert'",
    "gemma-4": r"tokenizer\.ggml\.model: .* found 'gemma4'",
    "gpt-neox": r"tokenizer\.ggml\.pre",
    "nomic-bert-moe": r"tokenizer\.ggml\.model: .* found 't5'",
}
"""Vocabularies of other families, and those whose files do not say how text is cut."""
pytestmark = [] if os.environ.get("PYINFER_VOCAB_DIR") else [pytest.mark.slow]


@cache
def tokenizer(folder: Path, name: str) -> Tokenizer:
    return opened(tokenizer_from_keys(read_gguf(folder / f"ggml-vocab-{name}.gguf").keys))


@pytest.mark.parametrize("name", VERIFIED)
def test_vectors_of_llama_cpp(name: str, vocabularies: Path) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    inputs = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert len(outputs) == (50 if name == "qwen35" else 46) and len(inputs) in (
        len(outputs),
        len(outputs) + 1,
    )
    for text, ids in zip(inputs, outputs, strict=False):
        assert tokenizer(vocabularies, name).encode(text, add_special=False) == ids, text
        assert tokenizer(vocabularies, name).decode(ids) == text


@pytest.mark.parametrize("name", REFUSED)
def test_other_vocabularies_are_refused_by_name(name: str, vocabularies: Path) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        tokenizer(vocabularies, name)


NORMALISED = ("command-r", "qwen2")
"""Their text is put into normal form C, so only such text comes back as it was."""
SPACES = ("llama-spm", "phi-3")
"""Their pieces write U+2581 for a space, so that character comes back as one."""
ALPHABET = byte_alphabet()
GAPS = ("falcon", "refact", "starcoder")
"""They lack bytes that only unassigned characters have; such text is refused."""


@pytest.mark.parametrize("name", [name for name in VERIFIED if name not in NORMALISED])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_round_trip_of_any_text(name: str, vocabularies: Path, text: str) -> None:
    text = text.replace("\u2581", "") if name in SPACES else text
    one = tokenizer(vocabularies, name)
    if name in GAPS:
        missing = {b for b, letter in enumerate(ALPHABET) if one.piece_to_id(letter) is None}
        text = "".join(char for char in text if not set(char.encode()) & missing)
        assert missing
    ids = one.encode(text, add_special=False)
    assert one.decode(ids) == text
    stream = one.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == text
    assert not any(one.is_special(i) for i in ids)
