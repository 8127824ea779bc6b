"""Meta's checkpoints: their weights by role, from any number of parts; what cannot be honoured is refused."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lora_writer as lw
from gguf_writer import TinyLlama, spm_kv
from pyinfer import convert
from pyinfer.convert.families.meta import _context, _hidden, _scaling
from pyinfer.convert.sentencepiece_model import Piece, encode_model
from pyinfer.errors import ModelFileError, UnsupportedError
from stored_values import stored

SHAPE = TinyLlama(dim=128, n_heads=8, n_kv_heads=8, n_ff=352, n_vocab=304)
Arrays = dict[str, NDArray[Any]]
NAMES = {
    "attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
    "attn_output": "attention.wo", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
}  # fmt: skip
OUTSIDE = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}
COLUMNS = ("wo.weight", "w2.weight", "tok_embeddings.weight")  # what is cut along columns


def arrays(shape: TinyLlama = SHAPE) -> Arrays:
    """The tensors under Meta's names, as halves; rows of q and k stay interleaved, as GGUF has them too."""
    found: Arrays = {}
    for tensor in shape.tensors():
        values = np.frombuffer(bytes(tensor.data), np.float32).reshape(tensor.dims[::-1])
        parts = tensor.name.split(".")
        name = f"layers.{parts[1]}.{NAMES[parts[2]]}" if parts[0] == "blk" else OUTSIDE[parts[0]]
        found[f"{name}.weight"] = values.astype(np.float16)
    return found


def params(shape: TinyLlama = SHAPE, **changes: Any) -> dict[str, Any]:
    settings = {
        "dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "multiple_of": 32, "norm_eps": 1e-6,
        "vocab_size": -1,
    } | changes  # fmt: skip
    return {key: value for key, value in settings.items() if value != "absent"}


def spm(n: int) -> bytes:
    kv = spm_kv(n)
    columns = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.scores"], kv["tokenizer.ggml.token_type"].value
    return encode_model(
        [Piece(*entry) for entry in zip(*columns, strict=True)], space_prefix=True, byte_fallback=True
    )


def cut(tensors: Arrays, count: int, columns: tuple[str, ...] = COLUMNS) -> list[Arrays]:
    """The tensors in parts for `count` machines, with a table of rotations in each."""
    parts: list[Arrays] = [{} for _ in range(count)]
    for name, values in tensors.items():
        for i, part in enumerate(parts):
            axis = 1 if name.endswith(columns) else 0
            part[name] = values if values.ndim == 1 else np.split(values, count, axis)[i]
            part["rope.freqs"] = np.ones(8, np.float32)
    return parts


def folder(path: Path, tensors: Arrays | None = None, count: int = 1, **changes: Any) -> Path:
    path.mkdir()
    (path / "params.json").write_text(json.dumps(params(**changes)))
    (path / "tokenizer.model").write_bytes(spm(SHAPE.n_vocab))
    for i, part in enumerate(cut(tensors or arrays(), count)):
        contiguous = {name: np.ascontiguousarray(values) for name, values in part.items()}
        (path / f"consolidated.{i:02}.pth").write_bytes(lw.torch_bin(contiguous))
    return path


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_parts_are_joined(count: int, tmp_path: Path) -> None:
    convert.convert(folder(tmp_path / "m", count=count), tmp_path / "a.bin", weights="f32")
    found, wanted = stored(tmp_path / "a.bin"), arrays()
    for role, name in (("v", "attention.wv"), ("o", "attention.wo"), ("gate", "feed_forward.w1"),
                       ("down", "feed_forward.w2"), ("up", "feed_forward.w3")):  # fmt: skip
        np.testing.assert_array_equal(found[role, 1], wanted[f"layers.1.{name}.weight"])
    for role, name in (("embedding", "tok_embeddings"), ("head", "output"), ("final_norm", "norm")):
        np.testing.assert_array_equal(
            found[role, -1], wanted[f"{name}.weight"].reshape(found[role, -1].shape)
        )
    for role in ("q", "k"):  # pairs (0, 1), (2, 3) ... of a head become its first halves, then its second
        rows = wanted[f"layers.0.attention.w{role}.weight"].reshape(8, 8, 2, 128)
        np.testing.assert_array_equal(found[role, 0], rows.transpose(0, 2, 1, 3).reshape(128, 128))


def test_later_embeddings_are_cut_along_rows(tmp_path: Path) -> None:
    source = folder(tmp_path / "m")
    for i, part in enumerate(cut(arrays(), 2, COLUMNS[:2])):
        contiguous = {name: np.ascontiguousarray(values) for name, values in part.items()}
        (source / f"consolidated.{i:02}.pth").write_bytes(lw.torch_bin(contiguous))
    convert.convert(source, tmp_path / "a.bin", weights="f16")
    np.testing.assert_array_equal(
        stored(tmp_path / "a.bin")["embedding", -1], arrays()["tok_embeddings.weight"]
    )


def test_a_head_that_is_the_embedding_is_stored_once(tmp_path: Path) -> None:
    """Llama 3.2 is published so; with rows that differ it is a head of its own."""
    values = arrays()
    values["output.weight"] = values["tok_embeddings.weight"].copy()
    assert convert.inspect(folder(tmp_path / "one", values)).spec.tied_head
    values["output.weight"][-1, -1] += 1
    assert not convert.inspect(folder(tmp_path / "two", values)).spec.tied_head


def test_grouped_queries_a_tied_head_and_the_default_format(tmp_path: Path) -> None:
    shape = TinyLlama(dim=128, n_heads=8, n_kv_heads=2, n_ff=352, n_vocab=304, tied=True)
    source = folder(tmp_path / "m", arrays(shape), 2, n_kv_heads=2, norm_eps=1e-5)
    info = convert.inspect(source)
    assert (info.spec.n_kv_heads, info.spec.tied_head, info.spec.context, info.kind) == (
        2,
        True,
        4096,
        "meta",
    )
    assert {group.format for group in info.groups} == {"q8", "vector"}
    assert info.tokenizer == "sentencepiece"


def test_the_tokenizer_may_lie_one_folder_up(tmp_path: Path) -> None:
    source = folder(tmp_path / "7B")
    (source / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    opened = convert.open_source(source)
    assert (opened.tokenizer.size, opened.tokenizer.bos, opened.tokenizer.eos) == (304, 1, (2,))
    assert tmp_path / "tokenizer.model" in [path.resolve() for path in opened.files]
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ModelFileError, match=r"expected tokenizer\.model there or one folder up"):
        convert.open_source(source)


def test_published_sizes() -> None:
    """Of LLaMA 7B and 65B, Llama 2 70B, 3 8B and 3.2 1B, as their papers and configurations give them."""
    sizes = {
        11008: ({"multiple_of": 256}, 4096),
        22016: ({"multiple_of": 256}, 8192),
        28672: ({"multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 8192),
        14336: ({"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 4096),
        8192: ({"multiple_of": 256, "ffn_dim_multiplier": 1.5}, 2048),
    }
    for wanted, (settings, dim) in sizes.items():
        assert _hidden(settings, dim) == wanted


@pytest.mark.parametrize(
    ("settings", "dim", "theta", "context"),
    [
        ({"norm_eps": 1e-6}, 4096, 10000.0, 2048),
        ({"norm_eps": 1e-5}, 8192, 10000.0, 2048),
        ({"norm_eps": 1e-5}, 4096, 10000.0, 4096),
        ({"norm_eps": 1e-5, "n_kv_heads": 8}, 8192, 10000.0, 4096),
        ({"norm_eps": 1e-5}, 4096, 1000000.0, 16384),
        ({"norm_eps": 1e-5}, 4096, 500000.0, 8192),
        ({"norm_eps": 1e-5, "use_scaled_rope": True}, 4096, 500000.0, 131072),
        ({"max_seq_len": 512}, 4096, 10000.0, 512),
    ],
)
def test_contexts_of_the_versions(settings: dict[str, Any], dim: int, theta: float, context: int) -> None:
    assert _context(settings, dim, theta) == context


def test_scaled_rotations() -> None:
    assert _scaling({}, 4096) is None
    found = {dim: _scaling({"use_scaled_rope": True}, dim) for dim in (2048, 3072, 4096)}
    assert [found[dim] and found[dim]["factor"] for dim in found] == [32.0, 32.0, 8.0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dim": "absent"}, "dim"),
        ({"dim": 0}, "dim"),
        ({"dim": 129}, "hidden_size|shape|divisor"),
        ({"n_heads": 3}, "divisor|shape"),
        ({"n_heads": True}, "n_heads"),
        ({"n_layers": 3}, r"layers\.2"),
        ({"n_layers": 1}, r"layers\.1"),
        ({"n_layers": 1 << 22}, "n_layers"),
        ({"n_kv_heads": 4}, "shape"),
        ({"vocab_size": 305}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": 256}, "shape"),
        ({"ffn_dim_multiplier": float("nan")}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier"),
        ({"norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"use_scaled_rope": True, "rope_scaling_factor": -1.0}, "factor"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args"),
        ({"lora_args": {"rank": 16}}, "lora_args"),
        ({"moe": {}}, "moe"),
    ],
)
def test_settings_that_cannot_be_honoured(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "m", **changes)
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(source)
    assert str(caught.value).startswith(str(source)) and "\n" not in str(caught.value)


def test_parts_that_are_missing_or_disagree(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", count=4)
    kept = (source / "consolidated.02.pth").read_bytes()
    (source / "consolidated.02.pth").unlink()
    with pytest.raises(ModelFileError, match=r"expected consolidated\.00\.pth and at most 7 that follow it"):
        convert.open_source(source)
    (source / "consolidated.02.pth").write_bytes(kept)
    (source / "consolidated.03.pth").unlink()
    with pytest.raises(ModelFileError, match="expected parts that make the shape"):
        convert.open_source(source)
    odd = cut(arrays(), 4)[3]
    for change, word in (
        ({"layers.0.attention.wq.weight": None}, r"part 3: expected a tensor layers\.0\.attention\.wq"),
        ({"layers.9.attention.wq.weight": np.ones((1, 1), np.float16)}, r"layers\.9"),
        ({"norm.weight": np.ones(128, np.float32)}, "one type in all parts"),
        ({"norm.weight": np.ones(64, np.float16)}, "parts that make the shape"),
    ):
        made: Mapping[str, Any] = {name: value for name, value in (odd | change).items() if value is not None}
        contiguous = {name: np.ascontiguousarray(value) for name, value in made.items()}
        (source / "consolidated.03.pth").write_bytes(lw.torch_bin(contiguous))
        with pytest.raises(ModelFileError, match=word):
            convert.open_source(source)


def test_more_than_eight_parts_and_none(tmp_path: Path) -> None:
    source = folder(tmp_path / "m")
    for i in range(9):
        (source / f"consolidated.{i:02}.pth").write_bytes(b"")
    with pytest.raises(ModelFileError, match="at most 7"):
        convert.open_source(source)
    for item in source.glob("*.pth"):
        item.unlink()
    with pytest.raises(ModelFileError, match="found none"):
        convert.open_source(source)


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    source, mark = folder(tmp_path / "m"), tmp_path / "it ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        raw = lw.archive(pickle.dumps({"norm.weight": Runs(mark)}, protocol), [])
        (source / "consolidated.00.pth").write_bytes(raw)
        with pytest.raises(UnsupportedError, match="expected only tensors"):
            convert.open_source(source)
    assert not mark.exists()


def test_cut_anywhere_or_short_of_its_storages(tmp_path: Path) -> None:
    shape = TinyLlama(n_layers=1, dim=8, n_heads=1, n_kv_heads=1, n_ff=32, n_vocab=304)
    source = folder(tmp_path / "m", arrays(shape), dim=8, n_layers=1, n_heads=1)
    convert.open_source(source)
    file = source / "consolidated.00.pth"
    whole = file.read_bytes()
    step = max(len(whole) // 400, 1)
    for size in [*range(0, len(whole), step), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"consolidated\.00\.pth"):
            convert.open_source(source)


def test_values_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """Opening reads none; a file that is cut meanwhile is an error, not half a model."""
    source = folder(tmp_path / "m")
    opened = convert.open_source(source)
    os.truncate(source / "consolidated.00.pth", 1000)
    with pytest.raises(ModelFileError, match="end of the file"):
        opened.tensors[-1].read(0, 16)


# Llama 3's list of byte strings


def trained(text: bytes, n: int) -> list[bytes]:
    """A small vocabulary by the textbook: the most frequent pair of neighbours becomes a token, again and again."""
    tokens = [bytes([b]) for b in range(256)]
    words = [[bytes([b]) for b in word] for word in text.split(b"|")]
    while len(tokens) < n:
        counts: dict[bytes, int] = {}
        for word in words:
            for left, right in pairwise(word):
                if left + right not in tokens:
                    counts[left + right] = counts.get(left + right, 0) + 1
        if not counts:
            break
        best = max(counts, key=lambda token: (counts[token], token))
        tokens.append(best)
        words = [by_rank(b"".join(word), {token: i for i, token in enumerate(tokens)}) for word in words]
    return tokens


def by_rank(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """How ranks are meant: join the neighbours whose union has the lowest rank, the leftmost first."""
    if word in ranks:
        return [word]
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts))]
        if not pairs or min(pairs)[0] == 1 << 30:
            return parts
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def rank_lines(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


TEXT = b"aaaaaaaa|aaaa|aaa|abab|ababab|the| the| then|there| here|bab|baba|aab|caab|acaac|    |   |  |xyxyx|yxyxy|111"


def test_ranks_are_joined_as_they_mean(tmp_path: Path) -> None:
    tokens = trained(TEXT, 290)
    ranks = {token: i for i, token in enumerate(tokens)}
    n_vocab = len(tokens) + 256
    shape = TinyLlama(n_layers=1, dim=32, n_heads=2, n_kv_heads=2, n_ff=96, n_vocab=n_vocab)
    source = folder(tmp_path / "m", arrays(shape), dim=32, n_layers=1, n_heads=2, rope_theta=500000.0)
    (source / "tokenizer.model").write_bytes(rank_lines(tokens))
    opened = convert.open_source(source)
    assert opened.spec.context == 8192 and opened.tokenizer.byte_level
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(opened.tokenizer.blob.decode())
    rng = np.random.default_rng(0)
    for alphabet in ("ab", "abc", "xy", "the r", "a"):
        for _ in range(300):
            word = "".join(rng.choice(list(alphabet.replace(" ", "")), rng.integers(1, 14)))
            wanted = [ranks[part] for part in by_rank(word.encode(), ranks)]
            assert library.encode(word, add_special_tokens=False).ids == wanted, word
    begin = library.token_to_id("<|begin_of_text|>")
    assert begin == len(tokens) == opened.tokenizer.bos
    assert library.token_to_id("<|eot_id|>") == begin + 9 and library.token_to_id("<|eom_id|>") is None
    assert library.token_to_id("<|reserved_special_token_250|>") == begin + 255
    assert opened.tokenizer.eos == (begin + 1, begin + 9)


def test_later_special_tokens() -> None:
    from pyinfer.convert.meta_tokenizer import special_tokens

    first, later = special_tokens(False), special_tokens(True)
    assert len(first) == len(later) == len(set(first)) == len(set(later)) == 256
    assert (later.index("<|eom_id|>"), later.index("<|eot_id|>"), later.index("<|python_tag|>")) == (8, 9, 10)
    assert (later[-1], first[-1]) == ("<|reserved_special_token_246|>", "<|reserved_special_token_250|>")
    assert first[10] == "<|reserved_special_token_5|>"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: [*lines[:3], *lines[4:]], "rank 3"),
        (lambda lines: [*lines[:3], lines[2], *lines[4:]], "rank 3"),
        (lambda lines: [*lines, b"A 256"], "line 257"),
        (lambda lines: [*lines, b"AAAAA 256"], "line 257"),
        (lambda lines: [*lines, b"A=A= 256"], "line 257"),
        (lambda lines: [*lines, b"QUJD 99999999"], "line 257"),
        (lambda lines: [*lines, b"", b"QUJD 256"], "line 257"),
        (lambda lines: [*lines, b"A" * 4000 + b" 256"], "line 257"),
        (lambda lines: lines[:255], "256 bytes"),
        (lambda lines: [b"\xff\xfe"], "sentencepiece"),
        (lambda lines: [], "pieces|sentencepiece"),
    ],
)
def test_broken_rank_files(change: Any, word: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "m")
    lines = rank_lines([bytes([b]) for b in range(256)]).splitlines()
    (source / "tokenizer.model").write_bytes(b"\n".join(change(lines)))
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(source)
    assert "tokenizer.model" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(
    "PYINFER_LLAMA3_TOKENIZER" not in os.environ, reason="PYINFER_LLAMA3_TOKENIZER names no file"
)
def test_llama3s_own_tokenizer() -> None:
    """Of the package llama-models 0.3.0: 128000 ranks; every word as by the plain algorithm."""
    from tokenizers import Tokenizer

    from pyinfer.convert.meta_tokenizer import read_ranks, read_tokenizer

    path = Path(os.environ["PYINFER_LLAMA3_TOKENIZER"])
    ranks, opened = read_ranks(path.read_bytes()), read_tokenizer(path, True)
    library = Tokenizer.from_str(opened.blob.decode())
    assert (len(ranks), opened.size, opened.bos, opened.eos) == (
        128000,
        128256,
        128000,
        (128001, 128008, 128009),
    )
    assert library.encode("hello world", add_special_tokens=False).ids == [15339, 1917]
    assert library.encode("<|eot_id|>", add_special_tokens=False).ids == [128009]
    rng = np.random.default_rng(1)
    tokens = [token for token in ranks if token.isalpha()]
    for _ in range(3000):
        word = b"".join(tokens[i] for i in rng.integers(0, len(tokens), 3))
        found = library.encode(word.decode(), add_special_tokens=False).ids
        assert found == [ranks[part] for part in by_rank(word, ranks)]
