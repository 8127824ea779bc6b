"""The metadata blob: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfer.convert.metadata import Landing, Metadata, Source, SourceFile
from pyinfer.errors import ModelFileError

WHOLE = Metadata(
    name="tiny ✓",
    architecture="llama",
    licence="mit",
    chat_template="{{ x }}\n",
    tokenizer="tokenizers",
    byte_level=True,
    bos=1,
    eos=(2, 7),
    pad=None,
    add_bos=True,
    source=Source("gguf", (SourceFile("a.gguf", 12, "ab" * 32),)),
    landed=(Landing("Q4_K", "q4m", 3, 10, 20, 1.5e-4),),
    options={"weights": "q8"},
)


def changed(**values: Any) -> bytes:
    raw = json.loads(WHOLE.to_json()) | values
    return json.dumps({key: value for key, value in raw.items() if value != "absent"}).encode()


def landed(**values: Any) -> bytes:
    """The same with other numbers in what became of its tensors; an infinity as JSON can write one."""
    [entry] = json.loads(WHOLE.to_json())["landed"]
    return changed(landed=[entry | values]).replace(b'"inf"', b"1e999")


def test_round_trip() -> None:
    assert Metadata.from_json(WHOLE.to_json()) == WHOLE
    assert Metadata.from_json(WHOLE.to_json() + b"  \n") == WHOLE


@given(st.text(), st.none() | st.text(), st.lists(st.integers(0, 2**22)), st.floats(0, 1))
def test_round_trip_of_any_values(name: str, licence: str | None, eos: list[int], rms: float) -> None:
    metadata = Metadata(name, "llama", licence, eos=tuple(eos), landed=(Landing("F32", "q8", 1, 4, 5, rms),))
    try:
        blob = metadata.to_json()
    except UnicodeEncodeError:
        assert any(0xD800 <= ord(c) < 0xE000 for c in name + (licence or ""))
        return
    assert Metadata.from_json(blob) == metadata


def test_fields_that_earlier_versions_did_not_know_have_their_defaults() -> None:
    read = Metadata.from_json(b'{"name": "x", "architecture": "llama"}')
    assert read == Metadata("x", "llama")


@pytest.mark.parametrize(
    ("blob", "word"),
    [
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (changed(more=1), "unknown field 'more'"),
        (changed(name="absent"), "missing field 'name'"),
        (changed(name=None), r"metadata\.name: expected str, found NoneType"),
        (changed(bos="1"), r"metadata\.bos: expected int or null, found str"),
        (changed(bos=True), r"metadata\.bos"),
        (changed(bos=-1), "bos: expected a token id"),
        (changed(eos=[-1]), "eos: expected token ids"),
        (changed(eos=2), r"metadata\.eos"),
        (changed(eos=[2, "x"]), r"metadata\.eos\[1\]: expected int"),
        (changed(add_bos=1), r"metadata\.add_bos: expected bool"),
        (changed(tokenizer="other"), "expected one of sentencepiece, tokenizers, none"),
        (changed(options={"a": 1}), r"metadata\.options\.a: expected str"),
        (changed(source={"kind": "gguf"}), "missing field 'files'"),
        (changed(source={"kind": "gguf", "files": [{}]}), r"source\.files\[0\]: missing field 'bytes'"),
        (changed(landed=[{}]), r"landed\[0\]: missing field"),
        (landed(rms_error=10**400), r"landed\[0\]\.rms_error: expected a number of less than"),
        (landed(rms_error="inf"), r"landed\[0\]\.rms_error: expected a number of less than"),
        (landed(bytes_in=10**400), r"landed\[0\]\.bytes_in: expected a number of less than"),
    ],
)
def test_anything_else_is_refused(blob: bytes, word: str) -> None:
    with pytest.raises(ModelFileError, match=word):
        Metadata.from_json(blob)
