"""llama2.c's later layouts: the same model as v0 of the same weights; published text; broken headers are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pyinfer
from pyinfer import _core, convert
from pyinfer.errors import ModelFileError, UnsupportedError

DATA = Path(__file__).parents[2] / "data"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
Arrays = dict[str, NDArray[np.float32]]
NUMBERS = (64, 172, 5, 8, 4, 512, 512)  # dim, hidden, layers, heads, kv heads, vocabulary, context


def stories() -> Arrays:
    """stories260K by role, each an array over its layers."""
    dim, n_ff, n, _, _, n_vocab, _ = NUMBERS
    kv = dim // 2
    shapes = {
        "embedding": (1, n_vocab, dim), "attn_norm": (n, dim), "q": (n, dim, dim), "k": (n, kv, dim),
        "v": (n, kv, dim), "o": (n, dim, dim), "ffn_norm": (n, dim), "gate": (n, n_ff, dim),
        "down": (n, dim, n_ff), "up": (n, n_ff, dim), "final_norm": (1, dim),
    }  # fmt: skip
    raw, at, found = np.fromfile(DATA / "stories260K.bin", "<f4", offset=28), 0, {}
    for role, shape in shapes.items():
        size = int(np.prod(shape))
        found[role] = raw[at : at + size].reshape(shape)
        at += size
    return found


def header(version: int, numbers: tuple[int, ...] = NUMBERS, tied: int = 1, rest: bytes = b"") -> bytes:
    return (struct.pack("<Ii7iB", 0x616B3432, version, *numbers, tied) + rest).ljust(256, b"\0")


ORDER = ("attn_norm", "ffn_norm", "final_norm", "embedding", "q", "k", "v", "o", "gate", "down", "up")


def version1(arrays: Arrays) -> bytes:
    return header(1) + b"".join(arrays[role].astype("<f4").tobytes() for role in ORDER)


def quantized(values: NDArray[np.float32], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    flat = values.reshape(-1, group)
    scale = np.abs(flat).max(axis=1) / np.float32(127.0)
    return np.round(flat / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def version2(arrays: Arrays, group: int, numbers: tuple[int, ...] = NUMBERS) -> bytes:
    made = header(2, numbers, rest=struct.pack("<i", group))
    for role in ORDER:
        for values in arrays[role]:
            if values.ndim == 1:
                made += values.astype("<f4").tobytes()
            else:
                q, scale = quantized(values, group)
                made += q.tobytes() + scale.tobytes()
    return made


def place(folder: Path, data: bytes) -> Path:
    (folder / "tokenizer.bin").write_bytes((DATA / "tok512.bin").read_bytes())
    (folder / "m.bin").write_bytes(data)
    return folder / "m.bin"


def weights_of(path: Path) -> list[bytes]:
    file = _core.ModelFile(str(path))
    return [file.read(i).tobytes() for i in range(len(file.tensors))]


def story(path: Path) -> str:
    with pyinfer.load(path, threads=1) as model:
        return model.generate("", max_tokens=45, temperature=0).text


def test_the_published_text(tmp_path: Path) -> None:
    convert.convert(DATA / "stories260K.bin", tmp_path / "a.bin")
    assert story(tmp_path / "a.bin").lstrip().startswith(STORY)


def test_version_1_is_the_same_model(tmp_path: Path) -> None:
    convert.convert(DATA / "stories260K.bin", tmp_path / "v0.bin")
    metadata = convert.convert(place(tmp_path, version1(stories())), tmp_path / "v1.bin")
    assert weights_of(tmp_path / "v0.bin") == weights_of(tmp_path / "v1.bin")
    assert metadata.source.kind == "llama2c"
    spec = _core.ModelFile(str(tmp_path / "v1.bin")).spec
    assert spec == _core.ModelFile(str(tmp_path / "v0.bin")).spec


def test_version_2_keeps_integers(tmp_path: Path) -> None:
    """Groups of whole blocks in rows land in int8 with their integers, scales rounded to halves; others as floats."""
    source = place(tmp_path, version2(stories(), 64))
    metadata = convert.convert(source, tmp_path / "a.bin")
    landed = {(item.source, item.format): item for item in metadata.landed}
    assert landed["Q8_F", "q8"].tensors == 31 and 0 < landed["Q8_F", "q8"].rms_error < 4e-4
    assert (
        landed["F32", "f32"].tensors == 5 and landed["F32", "f32"].rms_error == 0
    )  # down: rows of 172 values
    file = _core.ModelFile(str(tmp_path / "a.bin"))
    for i, record in enumerate(file.tensors):
        if record["role"] not in ("gate", "down", "embedding"):
            continue
        q, scale = quantized(stories()[record["role"]][max(record["layer"], 0)], 64)
        if record["format"] == "q8":
            scale = scale.astype(np.float16).astype(np.float32)
        wanted = (q.astype(np.float32) * scale[:, None]).reshape(record["rows"], record["cols"])
        found = _core.unpack(record["format"], file.read(i), record["rows"], record["cols"])
        np.testing.assert_array_equal(found, wanted)
    assert (
        story(tmp_path / "a.bin").lstrip().startswith("Once upon a time, there was a little girl named Lily.")
    )


@pytest.mark.parametrize("group", [4, 16])
def test_small_groups_become_the_floats_they_stand_for(group: int, tmp_path: Path) -> None:
    metadata = convert.convert(place(tmp_path, version2(stories(), group)), tmp_path / "a.bin")
    assert {item.format for item in metadata.landed} == {"f32", "vector"}


def test_a_head_of_its_own(tmp_path: Path) -> None:
    arrays = stories()
    data = header(1, tied=0) + b"".join(
        arrays[role].astype("<f4").tobytes() for role in (*ORDER, "embedding")
    )
    opened = convert.open_source(place(tmp_path, data))
    assert not opened.spec.tied_head and [tensor.role for tensor in opened.tensors].count("head") == 1


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (header(3), "version"),
        (header(0), "version"),
        (header(-1), "version"),
        (header(1)[:255], "header of 256"),
        (header(1), "expected a llama2.c file of"),
        (header(1, tied=2), "flag"),
        (header(1, (64, 172, 5, 8, 4, -512, 512)), "vocabulary"),
        (header(1, (64, 172, 5, 0, 4, 512, 512)), "n_heads"),
        (header(1, (64, 172, 5, 8, 3, 512, 512)), "n_kv_heads"),
        (header(1, (2**31 - 1, 172, 5, 1, 1, 512, 512)), "dim"),
        (header(1, rest=b"\1"), "zeros"),
        (header(2), "group_size"),
        (header(2, rest=struct.pack("<i", -64)), "group_size"),
        (header(2, rest=struct.pack("<i", 48)), "whole groups"),
        (header(2, rest=struct.pack("<ii", 64, 1)), "zeros"),
    ],
)
def test_broken_headers(data: bytes, word: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(place(tmp_path, data))
    assert "\n" not in str(caught.value) and "m.bin" in str(caught.value)


def test_an_unknown_version_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="expected 1 or 2, found 9"):
        convert.open_source(place(tmp_path, header(9)))


def test_the_first_layout_cut_anywhere(tmp_path: Path) -> None:
    whole = (DATA / "stories260K.bin").read_bytes()
    for size in [28, 29, 1000, len(whole) - 1]:
        wanted = f"expected a llama2.c file of {len(whole)} bytes, as its header says, found {size}"
        with pytest.raises(ModelFileError, match=wanted):
            convert.open_source(place(tmp_path, whole[:size]))
    with pytest.raises(ModelFileError, match="expected a GGUF file, a folder"):
        convert.open_source(place(tmp_path, whole[:27]))


@pytest.mark.parametrize("version", [1, 2])
def test_cut_anywhere(version: int, tmp_path: Path) -> None:
    whole = version1(stories()) if version == 1 else version2(stories(), 32)
    convert.open_source(place(tmp_path, whole))
    for size in [*range(257), 1000, len(whole) // 2, len(whole) - 1]:
        with pytest.raises(ModelFileError):
            convert.open_source(place(tmp_path, whole[:size]))
    with pytest.raises(ModelFileError, match=r"expected a llama2\.c file of"):
        convert.open_source(place(tmp_path, whole + b"\0"))
