"""Split GGUF files: read as the whole they make; parts that are missing, strange or twice there are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gguf_writer import TinyLlama, Typed, bpe_kv, write_gguf, write_llama
from pyinfer import _core, convert
from pyinfer.errors import ModelFileError

SHAPE = TinyLlama(n_vocab=270, kind="Q8_0")


def write_parts(
    folder: Path,
    count: int = 3,
    *,
    empty_first: bool = False,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """The tiny model in parts, as gguf-split marks them; `changes` are keys of single parts. Gives the first."""
    tensors = SHAPE.tensors()
    groups = [tensors[i :: count - empty_first] for i in range(count - empty_first)]
    groups = [[], *groups] if empty_first else groups
    for i, group in enumerate(groups):
        keys: dict[str, Any] = {"split.no": Typed("u16", i), "split.count": Typed("u16", count)}
        keys["split.tensors.count"] = Typed("i32", len(tensors))
        keys |= (SHAPE.kv() | bpe_kv(SHAPE.n_vocab)) if i == 0 else {}
        keys |= (changes or {}).get(i, {})
        write_gguf(folder / f"m-{i + 1:05}-of-{count:05}.gguf", keys, group)
    return folder / f"m-00001-of-{count:05}.gguf"


def weights_of(path: Path) -> list[bytes]:
    file = _core.ModelFile(str(path))
    return [file.read(i).tobytes() for i in range(len(file.tensors))]


@pytest.mark.parametrize("empty_first", [False, True])
def test_parts_make_the_whole(empty_first: bool, tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf", SHAPE, tokenizer="bpe")
    first = write_parts(tmp_path, empty_first=empty_first)
    convert.convert(whole, tmp_path / "whole.bin")
    metadata = convert.convert(first, tmp_path / "parts.bin")
    assert weights_of(tmp_path / "whole.bin") == weights_of(tmp_path / "parts.bin")
    assert [item.name for item in metadata.source.files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert convert.inspect(first).source_bytes == sum(
        path.stat().st_size for path in tmp_path.glob("m-*.gguf")
    )


def test_long_lists_of_texts_that_agree(tmp_path: Path) -> None:
    """As an array that is as wide as the longest text they would take gigabytes."""
    texts = ["a"] * 50_000 + ["b" * 40_000]
    whole = {i: {"tool.notes": texts} for i in range(3)}
    assert convert.open_source(write_parts(tmp_path, changes=whole)).name
    (tmp_path / "other").mkdir()
    whole[2] = {"tool.notes": texts[:-1]}
    with pytest.raises(ModelFileError, match=r"tool\.notes: expected the value of the first part"):
        convert.open_source(write_parts(tmp_path / "other", changes=whole))


def test_the_key_follows_every_part(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    key, last = convert.content_key(first), tmp_path / "m-00003-of-00003.gguf"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert convert.content_key(first) != key


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({0: {"split.count": Typed("u16", 2)}}, r"split\.count 2: expected a name like model-00001-of-00002"),
        ({1: {"split.count": Typed("u16", 2)}}, r"00002-of-00003\.gguf: split\.count: expected 3 .* found 2"),
        ({2: {"split.no": Typed("u16", 1)}}, r"00003-of-00003\.gguf: split\.no: expected 2 .* found 1"),
        ({0: {"split.no": Typed("u16", 1)}}, r"split\.no: expected the first part, m-00001-of-00003"),
        ({0: {"split.no": Typed("u16", 3)}}, r"split\.no: expected 0 to 2"),
        ({0: {"split.tensors.count": Typed("i32", 20)}}, r"split\.tensors\.count"),
        ({2: {"split.tensors.count": Typed("i32", 7)}}, r"00003.*split\.tensors\.count"),
        ({1: {"llama.block_count": 1}}, r"00002.*llama\.block_count"),
        ({1: {"tokenizer.ggml.tokens": ["a"]}}, r"00002.*tokenizer\.ggml\.tokens"),
        ({1: {"other": [1, 2]}}, r"00002.*other"),
    ],
)
def test_parts_that_disagree(changes: dict[int, dict[str, Any]], word: str, tmp_path: Path) -> None:
    first = write_parts(tmp_path, changes=changes)
    with pytest.raises(ModelFileError) as caught:
        convert.open_source(first)
    message = str(caught.value)
    assert re.search(word, message) and message.startswith(str(first)) and "\n" not in message


def test_parts_that_are_missing_double_or_alone(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    second, third = (tmp_path / f"m-0000{i}-of-00003.gguf" for i in (2, 3))
    with pytest.raises(
        ModelFileError, match=r"expected the first part, m-00001-of-00003\.gguf, found part 2"
    ):
        convert.open_source(second)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(ModelFileError, match=r"00003-of-00003\.gguf: split\.no: expected 2"):
        convert.open_source(first)
    third.unlink()
    with pytest.raises(
        ModelFileError, match=r"expected the part m-00003-of-00003\.gguf beside it, found none"
    ):
        convert.open_source(first)
    third.write_bytes(kept)
    moved = first.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match="expected a name like"):
        convert.open_source(moved)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    keys = {
        "split.no": Typed("u16", 2),
        "split.count": Typed("u16", 3),
        "split.tensors.count": Typed("i32", 21),
    }
    write_gguf(tmp_path / "m-00003-of-00003.gguf", keys, SHAPE.tensors()[1::3])
    with pytest.raises(
        ModelFileError, match=r"expected each tensor once, found it in m-00003-of-00003\.gguf too"
    ):
        convert.open_source(first)


def test_special_files_and_cuts_in_later_parts(tmp_path: Path) -> None:
    import os

    first = write_parts(tmp_path)
    second = tmp_path / "m-00002-of-00003.gguf"
    whole = second.read_bytes()
    for size in [*range(0, 400, 7), len(whole) - 1]:
        second.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="00002"):
            convert.open_source(first)
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(ModelFileError, match="expected a regular file"):
        convert.open_source(first)
    second.unlink()
    second.symlink_to(second)
    with pytest.raises((ModelFileError, OSError), match="00002"):
        convert.open_source(first)
