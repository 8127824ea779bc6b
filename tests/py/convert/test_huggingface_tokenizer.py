"""Tokenizers of Hugging Face directories: SentencePiece of both kinds, tokenizer.json, and the settings beside them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyinfer.convert.huggingface_tokenizer import read_tokenizer
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from pyinfer.tokenizer import Tokenizer
from test_tokenizer import opened

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
LINES = [
    f"the river {word} runs to the sea, and {word} is not far from {word}"
    for word in ("Rhine", "Elbe", "Oder")
]
OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "without space": {"model_type": "bpe", "add_dummy_prefix": False},
    "user-defined": {"model_type": "unigram", "user_defined_symbols": ["<turn>", "  ", "\n"]},
}


def model(**options: Any) -> bytes:
    """A SentencePiece model that was trained here, which writes what it does not know as bytes."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=made, vocab_size=320, hard_vocab_limit=False, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    return made.getvalue()


def read(folder: Path, settings: dict[str, Any] | None = None) -> Tokenizer:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return opened(read_tokenizer(folder, {}, {}, tokens | (settings or {})))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One tokenizer for each of the options."""
    made = {}
    for name, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp("spm")
        (folder / "tokenizer.model").write_bytes(model(**options))
        made[name] = read(folder)
    return made


@pytest.mark.parametrize("name", OPTIONS)
@given(text=TEXTS)
@example(text="  two  spaces <turn>\n\n and é🙂 ")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(name: str, text: str, trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained[name]
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos and tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == text


def test_options_of_sentencepiece(trained: dict[str, Tokenizer]) -> None:
    first = {name: one.token_to_piece(one.encode("river")[1]) for name, one in trained.items()}
    assert first["bpe"].startswith("▁") and first["unigram"].startswith("▁")
    assert not first["without space"].startswith("▁")
    turn = trained["user-defined"].piece_to_id("<turn>")
    assert turn is not None and turn in trained["user-defined"].encode("the<turn>river")
    assert trained["bpe"].token_to_piece(trained["bpe"].encode("é")[-1]) == "<0xA9>"


def test_control_tokens_that_swallow_white_space(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model(model_type="bpe"))
    size = read(tmp_path).n_vocab
    added = {"content": "<|user|>", "special": True, "rstrip": True}
    tokenizer = read(tmp_path, {"added_tokens_decoder": {str(size): added}})
    assert tokenizer.encode("<|user|>\n the", False, parse_special=True) == [
        size,
        *tokenizer.encode("the", False),
    ]
    with pytest.raises(UnsupportedError, match="added_tokens_decoder: expected no lstrip"):
        read(tmp_path, {"added_tokens_decoder": {str(size): added | {"lstrip": True}}})


def unigram_json(scheme: str) -> str:
    """A tokenizer.json with scores, as conversions of unigram models write it."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256))]
    pieces += [
        ("▁", -3.0),
        ("▁the", -1.0),
        ("▁river", -1.5),
        ("t", -4.0),
        ("h", -4.0),
        ("e", -4.0),
        ("river", -6.0),
    ]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    metaspace = {"replacement": "▁", "prepend_scheme": scheme, "split": False}
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(**metaspace)
    bytes_back = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace(**metaspace)]
    made.decoder = tokenizers.decoders.Sequence(bytes_back)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return str(made.to_str())


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_unigram_of_tokenizer_json(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(unigram_json(scheme))
    tokenizer = read(tmp_path)
    pieces = [tokenizer.token_to_piece(i) for i in tokenizer.encode("river the é", False)]
    assert pieces == ["river" if scheme == "never" else "▁river", "▁the", "▁", "<0xC3>", "<0xA9>"]
    for text in ("river the é", "", "🙂 the  the"):
        assert tokenizer.decode(tokenizer.encode(text, False)) == text
    assert tokenizer.encode("</s>", False, parse_special=True) == [2]
    with pytest.raises(RequestError, match=r"^text: expected none of the control tokens .* found '</s>'"):
        tokenizer.encode("the </s>", False)


def test_added_tokens_of_spaces_are_spaces(tmp_path: Path) -> None:
    """Conversions of Gemma's vocabulary list its runs of spaces as added tokens, with U+2581 as in the pieces."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "▁▁",
        "▁▁▁",
        "\n\n",
    ]
    model = tokenizers.models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [("▁", "▁"), ("▁▁", "▁")],
        byte_fallback=True,
        unk_token="<unk>",
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    made.decoder = tokenizers.decoders.Sequence(decoders)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_tokens([tokenizers.AddedToken(run, normalized=False) for run in ("▁▁", "▁▁▁", "\n\n")])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read(tmp_path)
    for text in ("the   the", "  e\n\n   t", " é"):
        ids = tokenizer.encode(text, False)
        assert ids == made.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == made.decode(ids) == text
    assert "▁▁▁" in map(tokenizer.token_to_piece, tokenizer.encode("the   the"))


def test_tokens_of_turns_are_control_tokens_whatever_tokenizer_json_calls_them(tmp_path: Path) -> None:
    """Those of DeepSeek-R1-Distill-Qwen are named ordinary ones, and messages could spell them."""
    made = tokenizers.Tokenizer.from_str(unigram_json("never"))
    names = ("<｜User｜>", "<think>", "<|fim_prefix|>")
    made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read(tmp_path)
    turn, thought = made.token_to_id("<｜User｜>"), made.token_to_id("<think>")
    assert tokenizer.is_special(turn) and not tokenizer.is_special(thought)
    assert turn not in tokenizer.encode("the<｜User｜>", False)
    assert tokenizer.encode("the<｜User｜>", False, parse_special=True)[-1] == turn
    assert thought in tokenizer.encode("the<think>", False)
    assert made.token_to_id("<|fim_prefix|>") in tokenizer.encode("<|fim_prefix|>the", False)


def test_tokens_of_turns_that_a_folder_adds_are_control_tokens(tmp_path: Path) -> None:
    """Nous-Hermes-2-SOLAR has "special": false at one of them; text behind it begins with a space."""
    (tmp_path / "tokenizer.model").write_bytes(model(model_type="bpe"))
    size = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model")).GetPieceSize()
    added = {"content": "<|im_start|>", "special": False, "lstrip": False, "rstrip": False}
    tokenizer = read(tmp_path, {"added_tokens_decoder": {str(size): added}})
    ids = tokenizer.encode("<|im_start|>river", False, parse_special=True)
    assert ids == [size, *tokenizer.encode("river", False)]
    assert size not in tokenizer.encode("<|im_start|>", False)


def test_the_space_in_front_is_for_the_beginning_where_legacy_is_off(tmp_path: Path) -> None:
    """As tokenizer.json has it with the scheme "first"."""
    (tmp_path / "tokenizer.model").write_bytes(model(model_type="bpe"))
    old, new = read(tmp_path), read(tmp_path, {"legacy": False})
    parts = ["river", "</s>", "river", "</s>", " the"]
    first, end = old.encode("river", False), [2]
    spelled = [new.token_to_piece(i) for i in new.encode_parts(parts)]
    assert old.encode_parts(parts) == [*first, *end, *first, *end, *old.encode("the", False)]
    assert new.encode("river", False) == first and "".join(spelled) == "▁river</s>river</s>▁the"
    assert new.decode(new.encode_parts(parts)) == "riverriver the"


def replaced(content: str, stages: int) -> dict[str, Any]:
    stage = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [stage] * stages}


def test_stages_that_would_fill_all_memory_are_refused(tmp_path: Path) -> None:
    """The library runs normalizers over its added tokens as it opens, and ends the process where memory ends."""
    whole = json.loads(unigram_json("never"))
    whole["added_tokens"].append({**whole["added_tokens"][0], "id": 400, "content": "a", "normalized": True})
    doubled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    expected = r"expected stages that make a text at most 64 times as long, found \d+ times"
    for key, value in (
        ("normalizer", replaced("a" * 16, 12)),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 64}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [doubled] * 40}),
    ):
        text = json.dumps({**whole, key: value})
        for written in (text, text.replace("Replace", "Repl\\u0061ce")):
            (tmp_path / "tokenizer.json").write_text(written)
            with pytest.raises(ModelFileError, match=expected):
                read(tmp_path)
    signs = [{"type": "Replace", "pattern": {"String": sign}, "content": f" {sign} "} for sign in ".,:;!?()-"]
    lines = {"type": "Replace", "pattern": {"Regex": r"\n"}, "content": "<|newline|>"}
    apart = {
        "type": "Sequence",
        "normalizers": [*signs, lines],
    }  # none acts on what another writes, but for the last
    for fine in (replaced("▁", 12), apart):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "normalizer": fine}))
        assert read(tmp_path)


def test_control_tokens_of_tokenizer_json_that_swallow_white_space(tmp_path: Path) -> None:
    whole = json.loads(unigram_json("never"))
    whole["added_tokens"][2] |= {"rstrip": True, "lstrip": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    tokenizer = read(tmp_path)
    expected = [*tokenizer.encode("the", False), 2, *tokenizer.encode("river", False)]
    assert tokenizer.encode("the </s>\n river", False, parse_special=True) == expected
    assert tokenizer.encode_parts(["the ", "</s>", "\n river"]) == expected


def test_what_texts_and_templates_mean_by_the_end(tmp_path: Path) -> None:
    """The tokenizer's own token, whatever else may end an answer."""
    (tmp_path / "tokenizer.json").write_text(unigram_json("never"))
    stated = {"eos_token": "</s>", "bos_token": None, "pad_token": None}
    numbers = {"eos_token_id": [1, 2], "bos_token_id": 1, "pad_token_id": 0}
    source = read_tokenizer(tmp_path, numbers, {"eos_token_id": [1, 0]}, stated)
    assert (source.eos, source.bos, source.pad) == ((2, 1, 0), None, None)
    silent = read_tokenizer(tmp_path, numbers, {}, {})  # config.json counts where the settings say nothing
    assert (silent.eos, silent.bos, silent.pad) == ((1, 2), 1, 0)


@pytest.mark.parametrize(
    "single", [[{"SpecialToken": {"id": "<s>", "type_id": 0}}], [{"Sequence": {"id": "B", "type_id": 0}}]]
)
def test_tokens_around_a_text_that_are_none(single: list[Any], tmp_path: Path) -> None:
    """The library panics, which is no Exception."""
    whole = json.loads(unigram_json("never"))
    pair = [*single, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    whole["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: tokenizer: expected .* in the vocabulary"):
        read(tmp_path)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("nested", [False, True])
def test_texts_between_control_tokens(scheme: str, nested: bool, tmp_path: Path) -> None:
    """Cut at their control tokens, texts have the ids that the library finds in the whole."""
    whole = json.loads(unigram_json(scheme))
    if nested:
        whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [whole["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    tokenizer = read(tmp_path)
    for parts in (["", "<s>", "river"], ["the", "<s>", "river the", "</s>", " the"]):
        expected = tokenizer.encode("".join(parts), False, parse_special=True)
        assert tokenizer.encode_parts(parts) == expected
