"""Text to ids and back: special tokens, streams that never split a character, hostile blobs."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_writer import TinyLlama, Typed, bpe_kv, spm_kv, write_gguf, write_llama
from pyinfer import _core, convert
from pyinfer.convert.checkpoint import TokenizerSource
from pyinfer.convert.gguf import read_gguf
from pyinfer.convert.gguf_tokenizer import tokenizer_from_keys
from pyinfer.convert.metadata import Metadata
from pyinfer.convert.pretokenizers import PRE_TOKENIZERS
from pyinfer.convert.sentencepiece_model import CONTROL, NORMAL
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from pyinfer.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data"
MODELS = ("bpe", "spm")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def opened(source: TokenizerSource, n_vocab: int | None = None) -> Tokenizer:
    metadata = Metadata(
        "test", "llama", tokenizer=source.kind, byte_level=source.byte_level, space_prefix=source.space_prefix,
        bos=source.bos, eos=source.eos, pad=source.pad, unk=source.unk, add_bos=source.add_bos, add_eos=source.add_eos,
        trim_after=source.trim_after, first_prefix=source.first_prefix,
    )  # fmt: skip
    return Tokenizer(source.blob, metadata, source.size if n_vocab is None else n_vocab)


def from_keys(path: Path, kv: dict[str, Any]) -> Tokenizer:
    return opened(tokenizer_from_keys(read_gguf(write_gguf(path, kv)).keys))


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """Makes a tokenizer of 300 tokens, "bpe" or "spm", with the keys of tokenizer.ggml that are given changed."""
    folder = tmp_path_factory.mktemp("vocabulary")

    def made(model: str, **changes: Any) -> Tokenizer:
        kv = (bpe_kv if model == "bpe" else spm_kv)(300)
        return from_keys(folder / "a.gguf", kv | {f"tokenizer.ggml.{k}": v for k, v in changes.items()})

    return made


@pytest.fixture(scope="session")
def tokenizers(make: Callable[..., Tokenizer]) -> dict[str, Tokenizer]:
    return {model: make(model) for model in MODELS}


@pytest.mark.model
def test_smollm2_ids(smollm2_bin: Path) -> None:
    tokenizer = Tokenizer.open(_core.ModelFile(str(smollm2_bin)))
    assert tokenizer.encode("Once upon a time") == [6403, 1980, 253, 655]
    prompt = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n", parse_special=True)
    assert prompt == [1, 4093, 198, tokenizer.piece_to_id("Hi"), 2, 198]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.n_vocab) == (1, (2, 0), 49152)


# Encoding


@pytest.mark.parametrize("model", MODELS)
@given(text=TEXTS)
@example(text="naïve 🙂 \x00\n<s> <|im_end|> [PAD5] ▁ a  b ")
@settings(max_examples=300, deadline=None)
def test_round_trip_of_any_text(model: str, text: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[model]
    if model == "spm":
        text = text.replace(
            "▁", ""
        )  # SentencePiece writes a space as this character and cannot tell them apart
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.n_vocab for i in ids)
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode(text, add_special=False))


@pytest.mark.parametrize("model", MODELS)
@given(ids=st.lists(st.integers(0, 299)))
@settings(max_examples=300, deadline=None)
def test_chunks_are_whole_characters_and_add_up(
    model: str, ids: list[int], tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[model]
    for skip_special in (True, False):
        stream = tokenizer.stream(skip_special=skip_special)
        chunks = [stream.push(i) for i in ids]
        for chunk in chunks:
            chunk.encode()
        assert "".join(chunks) + stream.flush() == tokenizer.decode(ids, skip_special)


def test_a_character_waits_for_its_last_byte(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["spm"]
    ids = tokenizer.encode("é🙂", add_special=False)[1:]
    assert [tokenizer.token_to_piece(i) for i in ids] == [
        "<0xC3>",
        "<0xA9>",
        "<0xF0>",
        "<0x9F>",
        "<0x99>",
        "<0x82>",
    ]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"] and stream.flush() == ""
    assert [stream.push(i) for i in (ids[0], ids[0])] == ["", "\N{REPLACEMENT CHARACTER}"]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_in_text_are_text_unless_asked(tokenizers: dict[str, Tokenizer]) -> None:
    for model, name, token in (("bpe", "<|im_end|>", 261), ("spm", "</s>", 2)):
        tokenizer = tokenizers[model]
        assert token not in tokenizer.encode(f"the{name}the", add_special=False)
        parsed = tokenizer.encode(f"the{name}the", add_special=False, parse_special=True)
        assert parsed.count(token) == 1 and parsed[0] != token != parsed[-1]
        assert tokenizer.decode(parsed, skip_special=False).count(name) == 1
        assert name not in tokenizer.decode(parsed)


def test_user_defined_tokens_are_found_in_any_text(make: Callable[..., Tokenizer]) -> None:
    assert 262 in make("bpe").encode("the<user>the")
    kv = spm_kv(300)
    pieces, kinds = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"].value
    pieces[299], kinds[299] = "<a b>", 4
    tokenizer = make("spm", tokens=pieces, token_type=Typed("i32", kinds))
    ids = tokenizer.encode("to <a b>the")
    assert 299 in ids and tokenizer.decode(ids) == "to <a b>the"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["user-defined", "plain"])
def test_tokens_of_turns_are_control_tokens_whatever_the_file_calls_them(
    model: str, kind: str, make: Callable[..., Tokenizer]
) -> None:
    """Converters of 2023 wrote them as user-defined, and would have them found in what users write."""
    kv = (bpe_kv if model == "bpe" else spm_kv)(300)
    pieces, kinds = list(kv["tokenizer.ggml.tokens"]), list(kv["tokenizer.ggml.token_type"].value)
    number = {"user-defined": 4, "plain": 1}[kind]
    pieces[296:300] = "<|eot_id|>", "<|turn|>", "<start_of_turn>", "<think>"
    kinds[296:300] = [number] * 4
    tokenizer = make(model, tokens=pieces, token_type=Typed("i32", kinds))
    marks = range(296, 299) if kind == "user-defined" else [296, 298]
    assert [i for i in range(296, 300) if tokenizer.is_special(i)] == list(marks)
    assert 296 in tokenizer.eos and {pieces[i] for i in marks} <= tokenizer.special_pieces().keys()
    for i in marks:
        assert i not in tokenizer.encode(f"the{pieces[i]}")
        assert i in tokenizer.encode(f"the{pieces[i]}", parse_special=True)


def test_pieces_without_scores_are_merged_by_their_ids(make: Callable[..., Tokenizer]) -> None:
    """Some converters write one score for all; from the left, "the" would become other tokens."""
    kv = spm_kv(300)
    pieces, kinds = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"].value
    scored = make("spm")
    plain = [-1000.0 if kind == NORMAL else 0.0 for kind in kinds]
    same = make("spm", scores=plain)
    for text in ("the other thing", "to be or not to be", "he"):
        expected = [scored.token_to_piece(i) for i in scored.encode(text, False)]
        assert [same.token_to_piece(i) for i in same.encode(text, False)] == expected
    assert len(pieces) == 300


@pytest.mark.parametrize("model", MODELS)
def test_ids_that_nothing_is_computed_with_may_be_beyond(model: str, make: Callable[..., Tokenizer]) -> None:
    tokenizer = make(model, padding_token_id=Typed("u32", 300), unknown_token_id=Typed("u32", 4000))
    assert tokenizer.pad is None


@pytest.mark.parametrize("letter", ["a", "t", "\u2581"])
def test_a_letter_that_is_a_control_token(letter: str, make: Callable[..., Tokenizer]) -> None:
    """Which SentencePiece may be unable to split a text with, by an error of its own."""
    kv = spm_kv(300)
    pieces, kinds = list(kv["tokenizer.ggml.tokens"]), list(kv["tokenizer.ggml.token_type"].value)
    if letter not in pieces:
        pieces[299] = letter
    kinds[pieces.index(letter)] = CONTROL
    with contextlib.suppress(ModelFileError, RequestError):
        make("spm", tokens=pieces, token_type=Typed("i32", kinds)).encode("a the a")


def test_pieces_that_the_library_cannot_hold(make: Callable[..., Tokenizer]) -> None:
    kv = spm_kv(300)
    with pytest.raises(ModelFileError, match="expected at most 4096 bytes a token, found one of 5000"):
        make("spm", tokens=[*kv["tokenizer.ggml.tokens"][:299], "a" * 5000])


def test_vocabularies_of_gemma_put_no_space_in_front(make: Callable[..., Tokenizer]) -> None:
    """Not all of its files say so."""
    kv = spm_kv(300)
    pieces = [*kv["tokenizer.ggml.tokens"][:299], "<start_of_turn>"]
    for said, expected in ((None, False), (True, True), (False, False)):
        tokenizer = make("spm", tokens=pieces, **({} if said is None else {"add_space_prefix": said}))
        first = tokenizer.token_to_piece(tokenizer.encode("t", False)[0])
        assert first.startswith("▁") == expected


@pytest.mark.parametrize("model", MODELS)
def test_no_token_is_no_token(model: str, make: Callable[..., Tokenizer]) -> None:
    none = Typed("u32", 0xFFFFFFFF)
    tokenizer = make(model, padding_token_id=none, unknown_token_id=none)
    assert (tokenizer.pad, tokenizer.unk) == (None, None)


def test_begin_and_end_tokens(make: Callable[..., Tokenizer]) -> None:
    assert make("spm").encode("t")[0] == 1 and make("spm").encode("t", add_special=False)[0] != 1
    assert make("spm", add_bos_token=False, add_eos_token=True).encode("t")[-1] == 2
    both = make("spm", add_eos_token=True)
    assert both.encode_prompt("t") == both.encode("t")[:-1] == make("spm").encode("t")
    assert make("bpe").encode("") == [] and make("bpe", add_bos_token=True).encode("") == [260]
    assert make("bpe", pre="llama-bpe").encode("") == [260]


def test_space_prefix(make: Callable[..., Tokenizer]) -> None:
    with_prefix, without = make("spm"), make("spm", add_space_prefix=False)
    assert with_prefix.token_to_piece(with_prefix.encode("t")[1]).startswith("▁")
    assert without.token_to_piece(without.encode("t")[1]) == "t"
    assert (
        without.decode(without.encode(" t")) == " t" and with_prefix.decode(with_prefix.encode(" t")) == " t"
    )


def test_stream_keeps_the_space_of_a_continued_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["spm"]
    word = tokenizer.encode("the", add_special=False)[0]
    assert tokenizer.token_to_piece(word) == "▁"
    assert tokenizer.stream().push(word) == "" and tokenizer.stream(after=[1]).push(word) == ""
    assert tokenizer.stream(after=[1, word]).push(word) == " "


def test_end_tokens_are_collected(make: Callable[..., Tokenizer]) -> None:
    assert make("bpe").eos == (261, 259)
    assert make("bpe", eos_token_id=5, eot_token_id=6).eos == (5, 6, 261, 259)
    assert make("spm").eos == (2,)


def test_pieces_and_ids(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    assert tokenizer.piece_to_id("Ġthe") == 258 and tokenizer.token_to_piece(258) == "Ġthe"
    assert (
        tokenizer.piece_to_id("no such piece") is None
        and tokenizers["spm"].piece_to_id("no such piece") is None
    )
    assert tokenizers["spm"].piece_to_id("<unk>") == 0
    assert tokenizer.special_pieces() == {"<|endoftext|>": 259, "<|im_start|>": 260, "<|im_end|>": 261}
    assert tokenizers["spm"].special_pieces() == {"<s>": 1, "</s>": 2}
    for token in (-1, 300):
        with pytest.raises(RequestError, match="expected an id of 0 to 299"):
            tokenizer.token_to_piece(token)
        with pytest.raises(RequestError, match="expected an id of 0 to 299"):
            tokenizer.decode([token])


def test_rows_beyond_the_tokenizer_are_no_text() -> None:
    keys = read_gguf_keys(spm_kv(300))
    tokenizer = opened(tokenizer_from_keys(keys), n_vocab=512)
    assert tokenizer.n_vocab == 512
    assert tokenizer.decode([1, 400, 511]) == "" and tokenizer.token_to_piece(400) == ""
    assert not tokenizer.is_special(400)


def read_gguf_keys(kv: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_gguf(write_gguf(Path(folder) / "a.gguf", kv)).keys


def test_padding_names_stand_for_nothing(make: Callable[..., Tokenizer]) -> None:
    kv = bpe_kv(300)
    tokens, kinds = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"].value
    tokens[290], kinds[290], tokens[291] = "[PAD290]", 4, ""
    tokenizer = make("bpe", tokens=tokens, token_type=Typed("i32", kinds))
    assert (
        290 not in tokenizer.encode("[PAD290]")
        and tokenizer.decode(tokenizer.encode("[PAD290]")) == "[PAD290]"
    )


def test_characters_that_a_vocabulary_lacks(make: Callable[..., Tokenizer]) -> None:
    kv = bpe_kv(300)
    tokens, kinds = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"].value
    tokens[0xF1], kinds[0xF1] = "[unused]", 5
    tokenizer = make("bpe", tokens=tokens, token_type=Typed("i32", kinds))
    with pytest.raises(RequestError, match=r"found U\+50000"):
        tokenizer.encode("a \U00050000 b")
    assert tokenizer.decode(tokenizer.encode("\U0001f642 ñ")) == "\U0001f642 ñ"


@pytest.mark.parametrize("model", MODELS)
def test_text_that_is_none(model: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RequestError, match="UTF-8"):
        tokenizers[model].encode("a\ud800")
    with pytest.raises(RequestError, match="expected a str, found bytes"):
        tokenizers[model].encode(b"a")  # type: ignore[arg-type]


def test_model_without_a_tokenizer() -> None:
    tokenizer = Tokenizer(b"", Metadata("x", "llama"), 10)
    assert tokenizer.eos == () and tokenizer.bos is None
    with pytest.raises(RequestError, match="found one without; use token ids"):
        tokenizer.encode("a")
    with pytest.raises(RequestError, match="found one without"):
        tokenizer.decode([1])


def test_threads_do_not_mix_their_settings(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer, text, wrong = tokenizers["bpe"], "the<|im_end|>the " * 20, []
    expected = {flag: tokenizer.encode(text, parse_special=flag) for flag in (True, False)}

    def work(flag: bool) -> None:
        for _ in range(50):
            if tokenizer.encode(text, parse_special=flag) != expected[flag]:
                wrong.append(flag)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and expected[True] != expected[False]


# Blobs and names


def test_pre_tokenizers_cut_as_their_names_say(make: Callable[..., Tokenizer]) -> None:
    for name in PRE_TOKENIZERS:
        tokenizer = make("bpe", pre=name)
        ids = tokenizer.encode("the 12345 naïve\n\n  ok", add_special=False)
        assert tokenizer.decode(ids) == "the 12345 naïve\n\n  ok"


def test_seed_coder_cuts_signs_from_the_ends_of_lines(make: Callable[..., Tokenizer]) -> None:
    kv = bpe_kv(300)
    pieces, merges = [*kv["tokenizer.ggml.tokens"][:299], ";Ċ"], [*kv["tokenizer.ggml.merges"], "; Ċ"]
    for name, joined in (("qwen2", True), ("seed-coder", False)):
        tokenizer = make("bpe", pre=name, tokens=pieces, merges=merges)
        assert (299 in tokenizer.encode("the;\n", False)) == joined


def test_nfc_is_applied_where_the_models_do(make: Callable[..., Tokenizer]) -> None:
    decomposed = "e\u0301"
    assert make("bpe", pre="qwen2").decode(make("bpe", pre="qwen2").encode(decomposed)) == "\u00e9"
    assert make("bpe", pre="llama-bpe").decode(make("bpe", pre="llama-bpe").encode(decomposed)) == decomposed


def test_unknown_pre_tokenizer_is_named(make: Callable[..., Tokenizer]) -> None:
    with pytest.raises(UnsupportedError, match=r"expected one of a.x-4.0, .*viking; found 'tomorrow'"):
        make("bpe", pre="tomorrow")


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizers"])
@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"{}",
        b"\xff" * 50,
        b"[" * 100_000,
        b'{"model":' * 5000,
        b'{"version":"1.0","model":{"type":"BPE"}}',
    ],
)
def test_broken_blobs_are_refused(kind: str, blob: bytes) -> None:
    with pytest.raises(ModelFileError, match=f"expected a {kind} model, found a broken one") as caught:
        Tokenizer(blob, Metadata("x", "llama", tokenizer=kind), 10)
    assert "\n" not in str(caught.value)


def test_expression_that_backtracks_without_end(tmp_path: Path) -> None:
    source = tokenizer_from_keys(read_gguf(write_gguf(tmp_path / "a.gguf", bpe_kv(300))).keys)
    written = json.loads(source.blob)
    stages = [{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}]
    written["pre_tokenizer"]["pretokenizers"] = stages
    tokenizer = Tokenizer(json.dumps(written).encode(), Metadata("x", "llama", tokenizer="tokenizers"), 300)
    with pytest.raises(RequestError, match="expected text that the tokenizer can split"):
        tokenizer.encode("a" * 40 + "!")


@pytest.mark.parametrize("model", MODELS)
def test_blobs_cut_anywhere_are_refused_or_small(model: str, tmp_path: Path) -> None:
    kv = (bpe_kv if model == "bpe" else spm_kv)(300)
    source = tokenizer_from_keys(read_gguf(write_gguf(tmp_path / "a.gguf", kv)).keys)
    metadata = Metadata("x", "llama", tokenizer=source.kind)
    for size in range(0, len(source.blob), 97):
        try:
            tokenizer = Tokenizer(source.blob[:size], metadata, 300)
        except ModelFileError:
            continue
        assert model == "spm" and tokenizer.encode("the") != []


def test_ids_outside_the_model_are_refused() -> None:
    for field, value in (("bos", 10), ("pad", 10), ("unk", 11), ("eos", (3, 10))):
        with pytest.raises(ModelFileError, match=f"{field}: expected an id below 10"):
            Tokenizer(b"", Metadata("x", "llama", **{field: value}), 10)
    with pytest.raises(ModelFileError, match="bos: expected an id as add_bos is true"):
        Tokenizer(b"", Metadata("x", "llama", add_bos=True), 10)


def test_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    source = tokenizer_from_keys(read_gguf(write_gguf(tmp_path / "a.gguf", bpe_kv(300))).keys)
    with pytest.raises(ModelFileError, match="expected at most 299 tokens"):
        opened(source, n_vocab=299)


def test_stored_tokenizer_json_is_what_the_library_writes(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "a.gguf", TinyLlama(n_vocab=300), tokenizer="bpe")
    convert.convert(path, tmp_path / "a.bin")
    written = json.loads(_core.ModelFile(str(tmp_path / "a.bin")).tokenizer())
    assert written["model"]["type"] == "BPE" and len(written["model"]["vocab"]) == 300


def test_stories_vocabulary() -> None:
    source = convert.open_source(DATA / "stories260K.bin").tokenizer
    tokenizer = opened(source)
    ids = tokenizer.encode("Once upon a time, there was a little girl named Lily.")
    assert ids[:6] == [1, 403, 407, 261, 378, 432] and tokenizer.decode(ids).endswith("named Lily.")
    assert tokenizer.decode(tokenizer.encode("日本語 ✓")) == "日本語 ✓"
