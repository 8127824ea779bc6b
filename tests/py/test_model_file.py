"""model.bin: the page describes what is written, and the reader refuses everything else.

Variants are opened by probe_model_file.py in another process: an abort there fails one test here.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import family_golden
from probing import run_python
from pyinfer import _core, convert
from pyinfer.errors import ModelFileError, RequestError
from reference import gguf, llama, model_bin
from tiny_models import SHAPES, TYPE_SHAPES, TYPES, Shape

Tiny = Callable[[Shape], tuple[Path, Path]]
Patch = list[tuple[int, bytes]]
SMALLEST = next(shape for shape in SHAPES if shape.name == "smallest")
EXTREMES = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
NAN, INFINITY, MINUS_ONE = 0x7FC00000, 0x7F800000, 0xBF800000


# The page and the writer agree


@pytest.mark.parametrize("shape", SHAPES + TYPE_SHAPES, ids=lambda s: s.name)
def test_reader_written_from_the_page_sees_what_the_core_sees(shape: Shape, tiny: Tiny) -> None:
    page, core = model_bin.read(tiny(shape)[1]), _core.ModelFile(str(tiny(shape)[1]))
    assert len(page.records) == len(core.tensors)
    for i, (record, tensor) in enumerate(zip(page.records, core.tensors, strict=True)):
        described = {
            name: getattr(record, name) for name in ("role", "layer", "format", "rows", "cols", "crc")
        }
        assert described == {name: tensor[name] for name in described}  # type: ignore[literal-required]
        assert np.array_equal(core.read(i), record.data) and core.verify(i)
        if record.format != "vector":
            unpacked = _core.unpack(record.format, record.data, record.rows, record.cols)
            assert np.array_equal(unpacked.view(np.uint32), record.values().view(np.uint32))
    by_page = {**page.spec, **page.marks, **{flag: page.has(flag) for flag in model_bin.FLAGS}}
    assert core.spec == {name: by_page[name] for name in core.spec}
    assert (core.metadata(), core.tokenizer()) == (page.metadata, page.tokenizer)
    assert core.file_bytes == page.header["file_bytes"]


@pytest.mark.parametrize("shape", SHAPES + TYPE_SHAPES, ids=lambda s: s.name)
def test_values_are_those_of_the_source(shape: Shape, tiny: Tiny) -> None:
    source = llama.from_gguf(gguf.read(tiny(shape)[0]))
    stored = llama.from_model_bin(model_bin.read(tiny(shape)[1]))
    for name in gguf.read(tiny(shape)[0]).tensors:
        if name != "rope_freqs.weight":
            short = name.removesuffix(".weight")
            assert np.array_equal(source.tensor(short), stored.tensor(short))
    assert np.allclose(stored.frequencies, source.frequencies, rtol=2.0**-23, atol=0)


FROM_FLOATS = ["f32", "f16", "bf16", "q4", "q4m", "q8", "q8m"]


@pytest.mark.parametrize("format_name", FROM_FLOATS)
@pytest.mark.parametrize(
    "rows,cols", [(1, 1), (1, 32), (15, 31), (16, 64), (17, 65), (33, 172), (5, 576), (48, 100)]
)
def test_packed_matrices_unpack_by_the_page(format_name: str, rows: int, cols: int) -> None:
    values = np.random.default_rng(rows * cols).standard_normal((rows, cols)).astype(np.float32)
    packed = _core.pack(format_name, values)
    assert len(packed) == _core.packed_bytes(format_name, rows, cols)
    by_page = model_bin.unpack(format_name, packed, rows, cols)
    assert np.array_equal(by_page, _core.unpack(format_name, packed, rows, cols))
    steps = {
        "f32": 0,
        "f16": 2**-11,
        "bf16": 2**-8,
        "q4": 1 / 8,
        "q4m": 1 / 15,
        "q8": 1 / 127,
        "q8m": 1 / 255,
    }
    spread = 2 * np.abs(values).max()
    assert np.abs(by_page - values).max() <= steps[format_name] * spread


@pytest.mark.parametrize("format_name", sorted(set(_core.FORMATS) - set(FROM_FLOATS)))
def test_floats_are_not_packed_to_formats_of_blocks(format_name: str) -> None:
    with pytest.raises(RequestError, match=format_name):
        _core.pack(format_name, np.ones((16, 256), np.float32))
    with pytest.raises(RequestError, match=format_name):
        _core.repack("Q8_0", format_name, np.zeros(16 * 8 * 34, np.uint8), 16, 256)


@pytest.mark.parametrize("source", TYPES)
def test_core_dequantises_as_other_implementations_do(source: str) -> None:
    if source == "F32":
        values = np.random.default_rng(0).standard_normal(1024).astype(np.float32)
        blocks = values.view(np.uint8)
    else:
        golden = np.load(Path(__file__).parent.parent / "golden" / "dequant.npz")
        blocks, values = golden[f"{source}_blocks"], golden[f"{source}_values"]
    from_core = _core.dequantize(source, blocks, 4, 256)
    assert np.array_equal(from_core.reshape(-1).view(np.uint32), values.view(np.uint32))


# The reader refuses everything else


@pytest.fixture(scope="module")
def base(tiny: Tiny) -> Path:
    return tiny(SMALLEST)[1]


def probe(base: Path, variants: Iterable[tuple[Patch, int | None]]) -> list[str]:
    """What opening each variant did; fails if the process died."""
    lines = [
        json.dumps({"patch": [[at, new.hex()] for at, new in patch], "bytes": size})
        for patch, size in variants
    ]
    script = Path(__file__).with_name("probe_model_file.py")
    done = run_python(str(script), str(base), text="\n".join(lines))
    answers = done.stdout.splitlines()
    died_at = lines[len(answers)] if len(answers) < len(lines) else "the end"
    assert done.returncode == 0, f"exit {done.returncode} at {died_at}: {done.stderr[-2000:]}"
    return answers


def refused(answer: str) -> bool:
    """Whether the answer is a ModelFileError of one sentence that names the file."""
    return answer.startswith("refused ") and "variant.bin" in answer and len(answer) < 500


def head_bytes(raw: bytes) -> int:
    """Length of header, specification and table."""
    return model_bin.TABLE_AT + struct.unpack_from("<Q", raw, 48)[0]


def with_crc(raw: bytes, patch: Patch) -> Patch:
    """The patch and the head checksum that makes it pass, if the table still lies inside the file."""
    data = bytearray(raw)
    for at, new in patch:
        data[at : at + len(new)] = new
    crc = model_bin.head_crc(bytes(data))
    return [*patch, (model_bin.HEAD_CRC_AT, struct.pack("<I", crc))]


def test_the_base_itself_opens(base: Path) -> None:
    assert probe(base, [([], None)]) == ["opened"]


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_changed_byte_of_the_head_is_refused(base: Path, flip: int) -> None:
    raw = base.read_bytes()
    answers = probe(base, [([(i, bytes([raw[i] ^ flip]))], None) for i in range(head_bytes(raw))])
    assert [i for i, answer in enumerate(answers) if not refused(answer)] == []


def fields(raw: bytes) -> Iterable[tuple[str, int, str]]:
    """(name, offset, struct code) of every number in the head."""
    yield from ((f"header.{name}", at, code) for name, at, code in model_bin.HEADER_FIELDS if name != "magic")
    yield from ((f"spec.{name}", model_bin.SPEC_AT + at, code) for name, at, code in model_bin.SPEC_FIELDS)
    for start in range(model_bin.TABLE_AT, head_bytes(raw), model_bin.RECORD_BYTES):
        yield from ((f"record.{name}", start + at, code) for name, at, code in model_bin.RECORD_FIELDS)


FREE = {"spec.context", "spec.norm_eps", "spec.rope_magnitude", "spec.attention_scale"}
BLOB_CHECKSUMS = {"record.crc", "header.metadata_crc", "header.tokenizer_crc"}
"""Fields that may hold other values in a valid file, and checksums that are compared when their bytes are asked for."""


def extremes(raw: bytes) -> Iterable[tuple[str, int, Patch]]:
    """(field, number, patch) for every field and extreme number that fits and is new there."""
    for name, at, code in fields(raw):
        floats = (NAN, INFINITY, MINUS_ONE) if code == "f" else ()
        width = struct.calcsize(code)
        for number in EXTREMES + floats:
            new = (number & (2 ** (8 * width) - 1)).to_bytes(width, "little")
            if raw[at : at + width] != new and name != "header.head_crc":
                yield name, number, with_crc(raw, [(at, new)])


def test_extreme_numbers_under_a_right_checksum_are_refused(base: Path) -> None:
    cases = list(extremes(base.read_bytes()))
    answers = probe(base, [(patch, None) for _, _, patch in cases])
    opened = {
        (name, number) for (name, number, _), answer in zip(cases, answers, strict=True) if answer == "opened"
    }
    odd = {answer for answer in answers if answer != "opened" and not refused(answer)}
    assert not odd
    assert {name for name, _ in opened} <= FREE | BLOB_CHECKSUMS
    assert not {(name, number) for name, number in opened if number in (NAN, INFINITY, MINUS_ONE)}


def test_random_heads_under_a_right_checksum_never_crash(base: Path) -> None:
    raw, rng = base.read_bytes(), np.random.default_rng(7)
    cases = []
    for _ in range(1500):
        places = rng.choice(range(8, head_bytes(raw)), rng.integers(1, 4))
        cases.append((with_crc(raw, [(int(at), rng.bytes(1)) for at in places]), None))
    odd = {answer for answer in probe(base, cases) if answer != "opened" and not refused(answer)}
    assert not odd


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of version 2 with most of what families have."""
    path = tmp_path_factory.mktemp("gemma3") / "model.bin"
    convert.convert(family_golden.FOLDER / "gemma3", path)
    return path


def test_random_features_under_a_right_checksum_never_crash(featured: Path) -> None:
    raw, rng = featured.read_bytes(), np.random.default_rng(8)
    at = model_bin.SPEC_AT
    assert probe(featured, [([], None)]) == ["opened"] and raw[at] == 2
    cases = []
    for _ in range(700):
        places = rng.choice(range(at + 32, at + 128), rng.integers(1, 3))
        bits = [(int(place), bytes([raw[place] ^ (1 << int(rng.integers(0, 8)))])) for place in places]
        cases.append((with_crc(raw, bits), None))
    answers = probe(featured, cases)
    assert not {answer for answer in answers if answer != "opened" and not refused(answer)}
    assert {"opened"} < set(answers)


def record(raw: bytes, i: int) -> bytes:
    at = model_bin.TABLE_AT + i * model_bin.RECORD_BYTES
    return raw[at : at + model_bin.RECORD_BYTES]


def structural(raw: bytes) -> dict[str, Patch]:
    """Tables whose numbers are fine one by one and wrong together."""
    at = model_bin.TABLE_AT
    first_offset, first_bytes = struct.unpack_from("<QQ", record(raw, 0), 32)
    second = at + model_bin.RECORD_BYTES
    weights_offset = struct.unpack_from("<Q", raw, 88)[0]
    return {
        "two records swapped": [(at, record(raw, 1) + record(raw, 0))],
        "the same record twice": [(second, record(raw, 0))],
        "overlapping tensors": [(second + 32, struct.pack("<Q", first_offset + first_bytes // 128 * 64))],
        "unaligned tensor": [(second + 32, struct.pack("<Q", first_offset + first_bytes + 1))],
        "role of another shape": [(at, struct.pack("<I", 24))],
        "layer past the last": [(second + 4, struct.pack("<I", 1))],
        "format of the same size": [(second + 8, struct.pack("<I", 3 if record(raw, 1)[8] == 2 else 2))],
        "reserved bytes of the header": [(112, b"\1")],
        "reserved bytes of the specification": [(model_bin.SPEC_AT + 127, b"\1")],
        "reserved bytes of a record": [(second - 1, b"\1")],
        "bytes before the weights": [(weights_offset - 1, b"\1")],
        "weights moved by a page": [
            (88, struct.pack("<QQ", weights_offset + 4096, len(raw) - weights_offset - 4096))
        ],
    }


@pytest.mark.parametrize("what", structural(bytes(4096)))
def test_inconsistent_tables_are_refused(base: Path, what: str) -> None:
    raw = base.read_bytes()
    (answer,) = probe(base, [(with_crc(raw, structural(raw)[what]), None)])
    assert refused(answer)


def test_a_file_cut_or_extended_anywhere_is_refused(base: Path) -> None:
    size, head = base.stat().st_size, head_bytes(base.read_bytes())
    points = [
        *range(1, head + 2),
        *range(head + 2, size, 61),
        *range(size - 70, size),
        size + 1,
        size + 64,
        size + 4096,
    ]
    answers = probe(base, [([], n) for n in points])
    assert [n for n, answer in zip(points, answers, strict=True) if not refused(answer)] == []


def test_a_file_cut_and_relabelled_is_refused(base: Path) -> None:
    """The header tells the new length, so that only the table can tell that weights are missing."""
    raw = base.read_bytes()
    weights_offset = struct.unpack_from("<Q", raw, 88)[0]
    cases: list[tuple[Patch, int | None]] = []
    for size in range(weights_offset, len(raw) - 63, 4096 + 64):
        patch = [(16, struct.pack("<Q", size)), (96, struct.pack("<Q", size - weights_offset))]
        cases.append((with_crc(raw, patch), size))
    assert all(map(refused, probe(base, cases)))


@pytest.mark.parametrize("section", ["metadata", "tokenizer"])
def test_a_changed_blob_is_noticed_when_it_is_read(base: Path, tmp_path: Path, section: str) -> None:
    raw = bytearray(base.read_bytes())
    at = struct.unpack_from("<Q", raw, {"metadata": 56, "tokenizer": 72}[section])[0]
    raw[at] ^= 1
    (tmp_path / "changed.bin").write_bytes(raw)
    with pytest.raises(ModelFileError, match=section):
        getattr(_core.ModelFile(str(tmp_path / "changed.bin")), section)()


def test_a_changed_weight_is_noticed_by_verify(base: Path, tmp_path: Path) -> None:
    whole = _core.ModelFile(str(base))
    raw = bytearray(base.read_bytes())
    raw[whole.tensors[3]["offset"] + whole.tensors[3]["bytes"] - 1] ^= 0x10
    (tmp_path / "changed.bin").write_bytes(raw)
    changed = _core.ModelFile(str(tmp_path / "changed.bin"))
    assert [changed.verify(i) for i in range(len(changed.tensors))] == [
        i != 3 for i in range(len(changed.tensors))
    ]


# Things that are not files


def test_folders_devices_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in (".", "fifo", "empty"):
        with pytest.raises(ModelFileError, match=str(tmp_path)):
            _core.ModelFile(str(tmp_path / name))
    with pytest.raises(ModelFileError):
        _core.ModelFile("/dev/zero")
    for name in ("loop", "missing", "missing/deep"):
        with pytest.raises(OSError, match=name):
            _core.ModelFile(str(tmp_path / name))


def test_an_unreadable_file_is_an_oserror(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.bin"
    path.write_bytes(base.read_bytes())
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(PermissionError, match="secret"):
            _core.ModelFile(str(path))
        return
    tmp_path.chmod(0o755)
    done = run_python("-c", OPEN_AS_ANOTHER_USER.format(path=str(path)))
    assert (done.returncode, done.stdout.strip()) == (0, "denied"), done.stderr[-2000:]


OPEN_AS_ANOTHER_USER = """
import os
from pyinfer import _core
os.seteuid(65534)
try:
    _core.ModelFile({path!r})
except PermissionError:
    print("denied")
"""


CUT_WHILE_MAPPED = """
import os, sys
import numpy as np
from pyinfer import _core
path, what, left = sys.argv[1:]
file = _core.ModelFile(path)
engine = _core.Engine(file, threads=2)
session = _core.Session(engine, 16)
session.eval(np.zeros(2, np.int32))
dim = file.spec["dim"]
adapter = {"role": "o", "layer": 0, "b": np.ones((dim, 2), np.float32), "scale": np.ones(2, np.float32)}
adapter["a"] = np.ones((2, file.spec["n_heads"] * file.spec["head_dim"]), np.float32)
os.truncate(path, int(left))
actions = {
    "read": lambda: [file.read(i) for i in range(len(file.tensors))],
    "verify": lambda: [file.verify(i) for i in range(len(file.tensors))],
    "metadata": file.metadata,
    "tokenizer": file.tokenizer,
    "eval": lambda: session.eval(np.zeros(2, np.int32)),
    "step": lambda: session.step(0),
    "engine": lambda: _core.Session(_core.Engine(file, threads=1), 16).step(0),
    "spec": lambda: print("no error", file.spec, file.tensors),
    "adapters": lambda: print("no error", _core.AdapterSet(engine, [adapter], [])),
    "forward": lambda: _core.forward(engine, [(session, np.zeros(2, np.int32), "last")]),
}
try:
    actions[what]()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "what",
    ["read", "verify", "metadata", "tokenizer", "eval", "step", "engine", "forward", "spec", "adapters"],
)
@pytest.mark.parametrize("left", [0, 4096])
def test_a_file_cut_while_mapped_is_an_exception(base: Path, tmp_path: Path, what: str, left: int) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(base.read_bytes())
    done = run_python("-c", CUT_WHILE_MAPPED, str(path), what, str(left))
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    if what in ("spec", "adapters"):  # which need nothing of the file any more
        assert done.stdout.startswith("no error")
    else:
        assert done.stdout.startswith("ModelFileError") and "cut.bin" in done.stdout


def test_blobs_are_checked_by_their_own_checksums(base: Path) -> None:
    raw, file = base.read_bytes(), _core.ModelFile(str(base))
    stored = struct.unpack_from("<II", raw, 104)
    assert stored == (zlib.crc32(file.metadata()), zlib.crc32(file.tokenizer()))
