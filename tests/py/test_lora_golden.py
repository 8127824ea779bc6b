"""Adapters attached to a model against PEFT's own logits, and on quantised bases against the float64 reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_golden import CASES, CHANGED_BASE, FOLDER, GROWN, Case, base_folder, named
from pyinfer import _core, convert, load, merging
from pyinfer.adapters import Adapter
from pyinfer.checking import look
from pyinfer.convert.checkpoint import Spec
from pyinfer.errors import ModelFileError, UnsupportedError
from pyinfer.export import export
from pyinfer.stack import Stack, base_reader, stacked
from reference import llama, model_bin
from reference.llama import Rounding, kl

REFUSED = dict.fromkeys(CHANGED_BASE, "init_lora_weights")
"""Adapters that cannot be honoured, and what the message must name."""
INVOKED = ("alora", "alora_uninvoked")
"""Cases of an adapter that applies from some tokens on: their stack changes within the text."""
BIASED = ("bias_all", "bias_lora_only", "lora_bias")
EXPORTED = (
    "plain", "one_rank", "rslora", "rank_pattern", "alpha_pattern", "rslora_patterns", "lora_bias", "embedding", "head",
    "tied_embedding", "tied_head", "tied_both", "regex", "float16", "qalora", "stack",
)  # fmt: skip
"""Cases that one plain LoRA can say."""
SUPPORTED = [case for case in CASES if case.name not in (*INVOKED, *GROWN)]
MOST_KL = 1e-6  # mean over positions, rounding of the cache to halves included
TYPICAL_KL = 1e-8  # of a position at which nothing falls between two integers
INT8 = Rounding(int8_activations=True, f16_cache=True)
WEIGHTED = {
    "doras": (("dora", 0.5), ("plain", -0.3), ("dora", 0.25)),
    "saved": (("saved_head", 0.5), ("saved_linear", -0.5), ("saved_norms", 0.25)),
    "saved_twice": (("saved_embedding", 0.5), ("tokens", -0.75), ("plain", 0.5)),
    "biases": (("lora_bias", 0.5), ("bias_all", -0.25)),
}
"""Stacks of what is no plain LoRA, with weights that PEFT has no logits for."""
Made = Callable[[bool, str], Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(tied, weight format) -> model.bin, each made once."""

    @cache
    def made(tied: bool, weights: str) -> Path:
        folder = tmp_path_factory.mktemp("base")
        convert.convert(base_folder(folder / "hf", tied), folder / "model.bin", weights=weights)
        return folder / "model.bin"

    return made


def stack_of(paths: Sequence[tuple[Path, float]], file: _core.ModelFile) -> Stack:
    """The adapters put together for a model; one that stands there twice is loaded once."""
    loaded = {path: Adapter.load(path) for path, _ in paths}
    weighted = tuple((loaded[path], weight) for path, weight in paths)
    return stacked(weighted, Spec(**file.spec), base_reader(file))


def logits(
    model: Path, paths: Sequence[tuple[Path, float]], tokens: Sequence[int], activations: str
) -> NDArray[np.float32]:
    """Our logits after every token."""
    file = _core.ModelFile(str(model))
    engine = _core.Engine(file, 2, activations)  # type: ignore[arg-type]
    session = _core.Session(engine, len(tokens), "f16")  # as INT8 has them
    session.adapters = stack_of(paths, file).packed(engine)
    return session.eval(np.array(tokens, np.int32), "all")


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_meets_peft(case: Case, base: Made) -> None:
    ours = logits(base(case.tied, "f32"), case.paths, case.tokens, "f32")
    assert kl(case.peft.astype(np.float64), ours).mean() <= MOST_KL


@pytest.mark.parametrize("name", WEIGHTED)
def test_any_weight_means_what_the_formula_says(name: str, base: Made, tmp_path: Path) -> None:
    case = Case(name, False, WEIGHTED[name], CASES[0].tokens)
    model = base(case.tied, "f32")
    expected = case.exact(llama.from_model_bin(model_bin.read(model)))
    ours = logits(model, case.paths, case.tokens, "f32")
    assert kl(expected, ours).mean() <= MOST_KL
    assert kl(expected, logits(model, (), case.tokens, "f32")).mean() > 100 * MOST_KL  # the stack shows
    if name != "biases":
        merged = tmp_path / "merged.bin"
        merging.convert_merged(model, merged, merging.loaded(case.paths))
        assert kl(expected, logits(merged, (), case.tokens, "f32")).mean() <= MOST_KL


@pytest.mark.parametrize("weights", ["q4", "q8"])
@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_adds_exactly_to_a_quantised_base(case: Case, weights: str, base: Made) -> None:
    """The reference holds the dequantised base plus the change, and rounds activations of the base's products alone."""
    model = base(case.tied, weights)
    dequantised = llama.from_model_bin(model_bin.read(model))
    off, adapted, bare = [], [], []
    for first in range(len(case.tokens)):
        tokens = case.tokens[first:] + case.tokens[:first]
        turned, alone = replace(case, tokens=tokens), Case("bare", case.tied, (), tokens)
        ours = logits(model, case.paths, tokens, "int8")
        off.append(np.median(kl(turned.exact(dequantised, INT8), ours)))
        adapted.append(kl(turned.exact(dequantised), ours).mean())
        bare.append(kl(alone.exact(dequantised), logits(model, (), tokens, "int8")).mean())
    assert np.median(off) <= TYPICAL_KL  # a first token between two integers shows in all that follow
    assert np.mean(adapted) <= 4 * np.mean(bare)


@pytest.mark.parametrize("case", [c for c in SUPPORTED if c.name not in BIASED], ids=lambda case: case.name)
def test_merged_into_float_weights_meets_peft(case: Case, tmp_path: Path) -> None:
    source, model = base_folder(tmp_path / "hf", case.tied), tmp_path / "model.bin"
    merging.convert_merged(source, model, merging.loaded(case.paths), weights="f32")
    assert kl(case.peft.astype(np.float64), logits(model, (), case.tokens, "f32")).mean() <= MOST_KL


@pytest.mark.parametrize("from_model_file", [False, True])
@pytest.mark.parametrize("name", GROWN)
def test_a_larger_vocabulary_is_merged(name: str, from_model_file: bool, base: Made, tmp_path: Path) -> None:
    case = named(name)
    source = base(case.tied, "f32") if from_model_file else base_folder(tmp_path / "hf", case.tied)
    weights = None if from_model_file else "f32"
    merging.convert_merged(source, tmp_path / "made.bin", merging.loaded(case.paths), weights=weights)
    with load(tmp_path / "made.bin", threads=1, activations="f32") as model:
        assert model.n_vocab == 101
        assert kl(case.peft.astype(np.float64), model.logits(case.tokens)).mean() <= MOST_KL


def test_trained_tokens_of_the_embedding_by_name_are_the_tied_heads_too(tmp_path: Path) -> None:
    """PEFT writes the rows of both ends then, as it does for a plain list."""
    rows = {"embed_tokens": [5, 96, 100]}
    by_name = Adapter.load(edited("tied_grown_tokens", tmp_path, trainable_token_indices=rows)).source
    by_list = Adapter.load(FOLDER / "tied_grown_tokens").source
    assert [(item.role, item.trained) for item in by_name.replaced] == [
        ("head", (5, 96, 100)),
        ("embedding", (5, 96, 100)),
    ]
    for ours, expected in zip(by_name.replaced, by_list.replaced, strict=True):
        assert np.array_equal(ours.values, expected.values)


@pytest.mark.parametrize("weights", ["q4", "q8", "f16"])
def test_a_larger_vocabulary_on_a_quantised_base(weights: str, base: Made, tmp_path: Path) -> None:
    """Rows of new tokens are those of the adapter, whatever the format of the base."""
    case = named("grown_untrained")
    merging.convert_merged(base(False, weights), tmp_path / "made.bin", merging.loaded(case.paths))
    read = base_reader(_core.ModelFile(str(tmp_path / "made.bin")))
    saved = {item.role: item.values for item in Adapter.load(case.paths[0][0]).source.replaced}
    for role in ("embedding", "head"):
        rows = read(role, -1)
        assert rows.shape == (101, 64)
        assert np.abs(rows[96:] - saved[role][96:]).max() <= np.abs(saved[role]).max() / 127


def test_a_larger_vocabulary_is_not_attached(base: Made) -> None:
    with (
        load(base(False, "q8"), threads=1) as model,
        pytest.raises(UnsupportedError, match="can be merged, not attached"),
    ):
        model.add_adapter(FOLDER / "grown")


def test_added_tokens_come_with_their_tokenizer(base: Made, tmp_path: Path) -> None:
    """The folder's tokenizer and chat template become the model's; the base here had none."""
    folder = edited("grown", tmp_path)
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz<|>01234")}
    vocabulary = letters | {f"<unused{i}>": i for i in range(len(letters), 96)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|tool{i}|>" for i in range(5)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}<|tool0|>{{ message.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|tool4|>", "chat_template": template}), encoding="utf-8"
    )
    merging.convert_merged(base(False, "q8"), tmp_path / "made.bin", merging.loaded([folder]))
    with load(tmp_path / "made.bin", threads=1) as model:
        assert model.tokenizer.encode("ab<|tool0|>c", parse_special=True) == [0, 1, 96, 2]
        assert 100 in model.tokenizer.eos
        assert model.chat_tokens("ab") == [96, 0, 1]
        assert len(model.generate("ab", max_tokens=2).tokens) <= 2


@pytest.mark.parametrize("name", ["saved_embedding", "tokens"])
@pytest.mark.parametrize("from_model_file", [False, True])
def test_tokens_in_spare_rows_come_with_their_tokenizer(
    name: str, from_model_file: bool, tmp_path: Path
) -> None:
    """A table that is padded, as Qwen's is, has room for them without being larger."""

    def vocabulary(path: Path, *special: str) -> None:
        pieces = "abcdefghijklmnopqrstuvwxyz<|>01234"
        model = tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [])
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(list(special))
        tokenizer.save(str(path / "tokenizer.json"))

    source, folder = base_folder(tmp_path / "hf", False), edited(name, tmp_path)
    vocabulary(source, "<|end|>")
    vocabulary(folder, "<|end|>", "<|tool|>")
    if from_model_file:
        source = convert.convert(source, tmp_path / "base.bin") and tmp_path / "base.bin"
    merging.convert_merged(source, tmp_path / "made.bin", merging.loaded([folder]))
    with load(tmp_path / "made.bin", threads=1) as model:
        assert model.n_vocab == 96
        assert model.tokenizer.encode("ab<|tool|>", parse_special=True) == [0, 1, 35]
        assert model.tokenizer.decode([35], skip_special=False) == "<|tool|>"
    vocabulary(folder, "<|end|>")
    merging.convert_merged(source, tmp_path / "same.bin", merging.loaded([(folder, 0.5)]))


def test_one_adapter_alone_may_add_tokens(base: Made, tmp_path: Path) -> None:
    for stack in ([(FOLDER / "grown", 0.5)], [FOLDER / "grown", FOLDER / "grown_untrained"]):
        with pytest.raises(UnsupportedError, match="one adapter that adds tokens, of weight 1"):
            merging.convert_merged(base(False, "q8"), tmp_path / "made.bin", merging.loaded(stack))
    assert not (tmp_path / "made.bin").exists()


def test_new_tokens_need_a_head(base: Made, tmp_path: Path) -> None:
    folder = edited("grown", tmp_path, modules_to_save=["embed_tokens"])
    values = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: kept for name, kept in values.items() if "lm_head" not in name},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(ModelFileError, match="expected lm_head with 101 tokens too"):
        merging.convert_merged(base(False, "q8"), tmp_path / "made.bin", merging.loaded([folder]))


def with_tensors(path: Path, changed: dict[str, object], values: dict[str, NDArray[np.float32]]) -> Path:
    """The plain adapter with other settings and with these tensors beside its own."""
    folder = edited("plain", path, **changed)
    values = {f"base_model.model.{name}": np.ascontiguousarray(array) for name, array in values.items()}
    save_file(load_file(folder / "adapter_model.safetensors") | values, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("weights", ["f32", "f16", "q8"])
@pytest.mark.parametrize("suffix", ["weight", "base_layer.weight"])
def test_a_stored_embedding_counts_whole_unless_it_is_the_bases(
    weights: str, suffix: str, base: Made, tmp_path: Path
) -> None:
    """Whoever unfreezes it by hand and saves it has PEFT read it back, however little its rows have moved."""
    float_base = base_reader(_core.ModelFile(str(base(False, "f32"))))("embedding", -1)
    file = _core.ModelFile(str(base(False, weights)))
    noise = np.random.default_rng(0).normal(size=float_base.shape).astype(np.float32)
    length = np.linalg.norm(float_base, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    for moved, n_rows in ((0.0, 96), (0.05, 96), (0.05, 1)):
        new = float_base.copy()
        new[:n_rows] += (moved * noise * length)[:n_rows]
        folder = with_tensors(tmp_path / f"{moved}-{n_rows}", {}, {f"model.embed_tokens.{suffix}": new})
        found = {(one.role, one.layer): one.values for one in stack_of([(folder, 1.0)], file).replaced}
        assert list(found) == ([("embedding", -1)] if moved else [])
        assert not moved or np.array_equal(found["embedding", -1], new)


def test_dora_of_a_head_whose_copy_is_stored_beside_it(base: Made, tmp_path: Path) -> None:
    """PEFT stores it where embedding or head are targets, unless it is told not to."""
    file = _core.ModelFile(str(base(False, "f32")))
    head = base_reader(file)("head", -1)
    rng = np.random.default_rng(0)
    values = {
        "lm_head.lora_A.weight": rng.normal(size=(4, head.shape[1])).astype(np.float32),
        "lm_head.lora_B.weight": rng.normal(size=(head.shape[0], 4)).astype(np.float32),
        "lm_head.lora_magnitude_vector": np.linalg.norm(head, axis=1),
    }
    copies = {
        "own": {},
        "copy": {"lm_head.base_layer.weight": head},
        "other": {"lm_head.base_layer.weight": -head},
    }
    plain = load_file(FOLDER / "plain" / "adapter_model.safetensors")
    settings: dict[str, object] = {"use_dora": True, "target_modules": ["lm_head"], "r": 4}
    stacks = {}
    for name, copy in copies.items():
        folder = with_tensors(tmp_path / name, settings, values | copy)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(
            {key: tensors[key] for key in tensors.keys() - plain.keys()}, folder / "adapter_model.safetensors"
        )
        if name == "other":
            with pytest.raises(UnsupportedError, match="use_dora beside a replaced tensor"):
                stack_of([(folder, 1.0)], file)
        else:
            stacks[name] = stack_of([(folder, 1.0)], file)
    (own,), (copied,) = stacks["own"].changes, stacks["copy"].changes
    assert np.array_equal(own.b, copied.b) and not stacks["copy"].replaced


def test_what_merging_leaves_of_a_tied_head(base: Made) -> None:
    case = named("tied_head")
    (found,) = (one for one in look(merging.loaded(case.paths), base(True, "f32")) if one.role == "head")
    file = _core.ModelFile(str(base(True, "f32")))
    old = base_reader(file)("embedding", -1)
    new = stack_of(case.paths, file).merged("head", -1, 0, old)
    stored, change = _core.unpack("q8", _core.pack("q8", new), *new.shape), new - old
    assert found.int8 == found.int4  # embedding and head keep 8 bits
    assert found.int8 == pytest.approx(
        float(((stored - old) * change).sum() / np.square(change).sum()), rel=0.01
    )
    assert found.int8 != 1.0


@pytest.mark.parametrize("name", BIASED)
def test_biases_cannot_be_merged(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="bias"):
        merging.convert_merged(
            base_folder(tmp_path / "hf", False), tmp_path / "model.bin", merging.loaded([FOLDER / name])
        )


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_as_one_adapter_meets_peft(name: str, base: Made, tmp_path: Path) -> None:
    case = named(name)
    model = base(case.tied, "f32")
    export(stack_of(case.paths, _core.ModelFile(str(model))), tmp_path / "one")
    ours = logits(model, [(tmp_path / "one", 1.0)], case.tokens, "f32")
    assert kl(case.peft.astype(np.float64), ours).mean() <= MOST_KL


@pytest.mark.parametrize("name", INVOKED)
def test_an_invoked_adapter_meets_peft(name: str, base: Made) -> None:
    """Also with what is held already, and token by token: an invocation is looked for in the whole prompt."""
    case = named(name)
    with load(base(False, "f32"), threads=1, activations="f32") as model:
        ours = model.logits(case.tokens, adapters=[FOLDER / "alora"])
        bare = model.logits(case.tokens)
    assert kl(case.peft.astype(np.float64), ours).mean() <= MOST_KL
    start = case.tokens.index(41) if name == "alora" else len(case.tokens)
    assert np.array_equal(ours[:start], bare[:start])
    assert start == len(case.tokens) or not np.allclose(ours[start:], bare[start:])


@pytest.mark.parametrize("weights", ["q4", "q8"])
@pytest.mark.parametrize("name", INVOKED)
def test_an_invoked_adapter_adds_exactly_to_a_quantised_base(name: str, weights: str, base: Made) -> None:
    model_file, case = base(False, weights), named(name)
    dequantised = llama.from_model_bin(model_bin.read(model_file))
    with load(model_file, threads=1, kv="f16", adapters=[FOLDER / "alora"]) as model:
        ours = model.logits(case.tokens)
    assert np.median(kl(case.exact(dequantised, INT8), ours)) <= TYPICAL_KL


def test_stack_of_the_api_meets_peft(base: Made) -> None:
    case = named("stack")
    with load(base(False, "f32"), activations="f32", adapters=[FOLDER / "dora"]) as model:
        for name in {name for name, _ in case.stack}:
            model.add_adapter(FOLDER / name)
        of_request, of_load = model.logits(case.tokens, adapters=case.stack), model.logits(case.tokens)
    assert kl(case.peft.astype(np.float64), of_request).mean() <= MOST_KL
    assert kl(named("dora").peft.astype(np.float64), of_load).mean() <= MOST_KL


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name: str, base: Made) -> None:
    file = _core.ModelFile(str(base(False, "f32")))
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        stack_of([(FOLDER / name, 1.0)], file)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 1}),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "ADALORA"),
        ("a_setting_of_tomorrow", True),
    ],
)
def test_refuses_settings_that_it_does_not_know(setting: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=setting):
        Adapter.load(edited("plain", tmp_path, **{setting: value}))


def test_refuses_tensors_of_norms(tmp_path: Path) -> None:
    """They are in the file without `modules_to_save` saying so: an adapter of another method."""
    with pytest.raises(UnsupportedError, match=r"layernorm\.weight"):
        Adapter.load(edited("saved_norms", tmp_path, modules_to_save=None))


def test_gguf_of_the_same_adapter_is_the_same_to_the_bit(base: Made) -> None:
    """llama.cpp's converter permutes the rows of q and k; the values are those of the folder."""
    model, case = base(False, "q4"), named("plain")
    of_folder = logits(model, case.paths, case.tokens, "int8")
    of_gguf = logits(model, [(FOLDER / "plain.gguf", 1.0)], case.tokens, "int8")
    assert np.array_equal(of_folder.view(np.uint32), of_gguf.view(np.uint32))


def test_pickle_of_the_same_adapter_is_the_same_to_the_bit(base: Made) -> None:
    model, case = base(False, "q4"), named("one_rank")
    of_folder = logits(model, case.paths, case.tokens, "int8")
    of_pickle = logits(model, [(FOLDER / "one_rank_bin", 1.0)], case.tokens, "int8")
    assert np.array_equal(of_folder.view(np.uint32), of_pickle.view(np.uint32))


SCALINGS = {
    "plain": {"layers.0.self_attn.q_proj": 6 / 3},
    "rslora": {"layers.1.mlp.down_proj": 3 / 4**0.5},
    "rank_pattern": {
        "layers.0.self_attn.q_proj": 4 / 4,
        "layers.1.self_attn.q_proj": 4 / 5,
        "layers.1.mlp.up_proj": 4 / 2,
        "layers.1.self_attn.v_proj": 4 / 3,
    },
    "alpha_pattern": {
        "layers.0.mlp.gate_proj": 9 / 2,
        "layers.1.mlp.gate_proj": 1 / 2,
        "layers.1.self_attn.k_proj": 3 / 2,
        "layers.0.self_attn.o_proj": 3 / 3,
    },
    "rslora_patterns": {
        "layers.0.self_attn.q_proj": 2 / 5**0.5,
        "layers.0.self_attn.o_proj": 3 / 2**0.5,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings(name: str) -> None:
    """Numbers of the settings by hand: alpha / r, with rsLoRA alpha / sqrt(r), patterns before the general values."""
    found = {change.name: change.scaling for change in Adapter.load(FOLDER / name).source.changes}
    for module, scaling in SCALINGS[name].items():
        assert found[f"model.{module}"] == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [("rslora", {"use_rslora": False}), ("alpha_pattern", {"alpha_pattern": {}})],
)
def test_a_reader_that_ignored_the_setting_would_show(
    name: str, mistake: dict[str, object], base: Made, tmp_path: Path
) -> None:
    """llama.cpp's adapters know neither setting."""
    case, model = named(name), base(False, "f32")
    right = logits(model, case.paths, case.tokens, "f32")
    wrong = logits(model, [(edited(name, tmp_path, **mistake), 1.0)], case.tokens, "f32")
    exact = case.peft.astype(np.float64)
    assert kl(exact, right).mean() <= MOST_KL < 1e-2 <= kl(exact, wrong).mean()


def test_weights_of_a_repeated_adapter_add_up(base: Made) -> None:
    case, model = named("plain"), base(False, "q4")
    path = FOLDER / "plain"
    once = logits(model, [(path, 0.75)], case.tokens, "int8")
    twice = logits(model, [(path, 0.5), (path, 0.25)], case.tokens, "int8")
    assert kl(once.astype(np.float64), twice).max() <= TYPICAL_KL


@pytest.mark.parametrize("name", ["stack_zero", "stack_cancels"])
def test_a_stack_of_nothing_has_the_bits_of_the_base(name: str, base: Made) -> None:
    case, model = named(name), base(False, "q4")
    ours = logits(model, case.paths, case.tokens, "int8")
    assert np.array_equal(ours, logits(model, (), case.tokens, "int8"))


def edited(name: str, path: Path, **changes: object) -> Path:
    """A copy of an adapter with other settings."""
    folder = Path(shutil.copytree(FOLDER / name, path / name))
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    return folder
