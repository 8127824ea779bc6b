"""Makes the folder lora/ beside it: a tiny random model, adapters that PEFT writes, and PEFT's float32 logits.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 gguf==0.19.0
    python tests/golden/make_lora.py llama.cpp/convert_lora_to_gguf.py

lora/base/            a LLaMA of two layers in half precision; its tied form is the same without `lm_head.weight`
lora/<adapter>/       what PEFT's `save_pretrained` wrote for one setting of `LoraConfig`
lora/one_rank_bin/    the adapter `one_rank` as PEFT writes it with torch.save
lora/plain.gguf       the adapter `plain` as llama.cpp's converter writes it
lora/cases.json       for each case: the base, the stack as [adapter, weight] and the tokens
lora/logits.npz       for each case PEFT's logits after every token

Whatever an adapter holds is random, also what PEFT starts at zero, so that nothing can be left out unnoticed. Logits
come from the folders as PEFT reads them back, on the CPU, in float32. PEFT sorts the keys of what it saves, so patterns
are given in that order: the first that matches counts.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "lora"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
INVOCATION = [41, 42]
TOKENS = [1, 17, 5, 93, 41, 42, 8, 8, 60, 3, 95, 29]
GROWN_TOKENS = [1, 17, 96, 93, 100, 8, 60, 99, 29]
UNINVOKED = [token for token in TOKENS if token != 42]
BASE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One adapter: what `LoraConfig` gets, and what is done to the folder that PEFT wrote."""

    name: str
    config: dict[str, Any]
    base: str = "untied"  # or tied, or biased: untied with biases of zero, for adapters that train biases
    save_embeddings: bool = False
    edit: Callable[[Path], None] | None = None
    tokens: tuple[list[int], ...] = field(default_factory=lambda: (TOKENS,))
    n_vocab: int = BASE["vocab_size"]  # larger: the base's embedding and head are resized first
    noise: float = (
        0.2  # of copies of the base's own tensors; more than the two ends together bear is lost in the cache
    )


@dataclass(frozen=True)
class Case:
    """A stack whose logits are kept."""

    name: str
    base: str
    stack: list[tuple[str, float]]
    tokens: list[int]


def stored_as(dtype: torch.dtype) -> Callable[[Path], None]:
    """Rewrites an adapter's tensors in another type."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({name: values.to(dtype) for name, values in load_file(file).items()}, file)

    return edit


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Changes fields of adapter_config.json; sets, which PEFT writes in any order, become sorted."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) | changes
        if isinstance(settings["target_modules"], list):
            settings["target_modules"].sort()
        file.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    return edit


def lora(r: int, alpha: float, modules: list[str] | str, **rest: Any) -> dict[str, Any]:
    return {"r": r, "lora_alpha": alpha, "target_modules": modules, **rest}


RECIPES = (
    Recipe("plain", lora(3, 6, ALL)),
    Recipe("one_rank", lora(1, 2, ["down_proj", "q_proj"])),
    Recipe("rslora", lora(4, 3, ["q_proj", "v_proj", "down_proj"], use_rslora=True)),
    Recipe(
        "rank_pattern",
        lora(2, 4, ["q_proj", "v_proj", "up_proj"],
             rank_pattern={"1.self_attn.q_proj": 5, "q_proj": 4, "v_proj": 3}),
    ),
    Recipe(
        "alpha_pattern",
        lora(2, 4, ["k_proj", "o_proj", "gate_proj"],
             alpha_pattern={"0.mlp.gate_proj": 9, "[ok]_proj": 3, "gate_proj": 1},
             rank_pattern={"o_proj": 3}),
    ),
    Recipe("rslora_patterns", lora(
        2, 3, ["q_proj", "o_proj"], use_rslora=True, rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 2})),
    Recipe("dora", lora(2, 4, ["q_proj", "k_proj", "o_proj", "down_proj"], use_dora=True)),
    Recipe("bias_none_there", lora(2, 4, ["q_proj"], bias="all")),
    Recipe("bias_all", lora(2, 4, ["q_proj", "down_proj"], bias="all"), base="biased"),
    Recipe("bias_lora_only", lora(2, 4, ["k_proj", "up_proj"], bias="lora_only"), base="biased"),
    Recipe("lora_bias", lora(2, 4, ["q_proj", "k_proj", "down_proj"], lora_bias=True)),
    Recipe("embedding", lora(2, 4, ["embed_tokens", "v_proj"])),
    Recipe("embedding_rslora_saved", lora(3, 4, ["embed_tokens"], use_rslora=True), save_embeddings=True),
    Recipe("head", lora(2, 4, ["lm_head", "v_proj"])),
    Recipe("tied_embedding", lora(2, 4, ["embed_tokens"]), base="tied"),
    Recipe("tied_head", lora(2, 4, ["lm_head", "q_proj"]), base="tied"),
    Recipe("tied_both", lora(2, 4, ["embed_tokens", "lm_head"], ensure_weight_tying=True), base="tied"),
    Recipe("saved_head", lora(2, 4, ["v_proj"], modules_to_save=["lm_head"])),
    Recipe("saved_embedding", lora(2, 4, ["v_proj"], modules_to_save=["embed_tokens"])),
    Recipe("saved_norms", lora(
        2, 4, ["v_proj"], modules_to_save=["norm", "input_layernorm", "post_attention_layernorm"])),
    Recipe("saved_linear", lora(2, 4, ["v_proj"], modules_to_save=["k_proj"])),
    Recipe("tokens", lora(2, 4, ["v_proj"], trainable_token_indices=[5, 42, 95])),
    Recipe("tied_tokens", lora(2, 4, ["v_proj"], trainable_token_indices=[5, 42, 95]), base="tied"),
    Recipe("some_layers", lora(2, 4, ["q_proj", "up_proj"], layers_to_transform=[1])),
    Recipe("regex", lora(2, 4, r".*layers\.0\..*(k_proj|o_proj)")),
    Recipe("fan_in_fan_out", lora(2, 4, ["q_proj", "down_proj"]), edit=with_config(fan_in_fan_out=True)),
    Recipe("bfloat16", lora(3, 6, ["q_proj", "gate_proj"]), edit=stored_as(torch.bfloat16)),
    Recipe("float16", lora(3, 6, ["o_proj", "down_proj"]), edit=stored_as(torch.float16)),
    Recipe("alora", lora(2, 4, ["q_proj", "v_proj", "down_proj"], alora_invocation_tokens=INVOCATION),
           tokens=(TOKENS, UNINVOKED)),
    Recipe("qalora", lora(2, 4, ["q_proj", "down_proj"], use_qalora=True, qalora_group_size=16)),
    Recipe("pissa", lora(2, 4, ["q_proj"], init_lora_weights="pissa")),
    Recipe("olora", lora(2, 4, ["q_proj"], init_lora_weights="olora")),
    Recipe("grown", lora(2, 4, ["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
           tokens=(GROWN_TOKENS,), n_vocab=101),
    Recipe("grown_untrained", lora(2, 4, ["v_proj"]), tokens=(GROWN_TOKENS,), n_vocab=101, save_embeddings=True),
    Recipe("tied_grown", lora(2, 4, ["v_proj"]), base="tied", tokens=(GROWN_TOKENS,), n_vocab=101,
           save_embeddings=True),
    Recipe("tied_saved", lora(2, 4, ["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
           base="tied", noise=0.05),
    Recipe("tied_tokens_apart", lora(
        2, 4, ["v_proj"], trainable_token_indices={"embed_tokens": [5, 42], "lm_head": [95, 5]}), base="tied"),
    Recipe("grown_tokens", lora(2, 4, ["v_proj"], trainable_token_indices=[5, 96, 100]), tokens=(GROWN_TOKENS,),
           n_vocab=101, save_embeddings=True),
    Recipe("tied_grown_tokens", lora(2, 4, ["v_proj"], trainable_token_indices=[5, 96, 100]), base="tied",
           tokens=(GROWN_TOKENS,), n_vocab=101, save_embeddings=True),
    Recipe("excluded", lora(2, 4, ["q_proj", "down_proj"], exclude_modules=["down_proj"])),
)  # fmt: skip
CHANGED_BASE = ("pissa", "olora")
"""Their folders mean nothing without the base that PEFT changed: they must be refused, and have no logits."""
STACKS = {
    "stack": [("plain", 1.0), ("rank_pattern", 0.5), ("alpha_pattern", -0.3), ("rank_pattern", 0.25)],
    "stack_cancels": [("plain", 0.75), ("plain", -0.75)],
    "stack_zero": [("plain", 0.0)],
}


def make_base() -> None:
    """Writes base/: weights of a size that keeps activations near one, in half precision."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**BASE, tie_word_embeddings=False))
    for name, values in model.named_parameters():
        spread = (2.0 if "embed_tokens" in name else 1.5) * values.shape[-1] ** -0.5
        values.data = (
            1 + 0.2 * torch.randn_like(values) if values.ndim == 1 else spread * torch.randn_like(values)
        )
    model.half().save_pretrained(HERE / "base")
    (HERE / "base" / "generation_config.json").unlink()


def base(kind: str, n_vocab: int = BASE["vocab_size"]) -> LlamaForCausalLM:
    """The base in float32, in one of its three forms, with random rows for more tokens than it has."""
    weights = {
        name: values.float() for name, values in load_file(HERE / "base" / "model.safetensors").items()
    }
    has_biases = kind == "biased"
    config = LlamaConfig(
        **BASE, tie_word_embeddings=kind == "tied", attention_bias=has_biases, mlp_bias=has_biases
    )
    model = LlamaForCausalLM(config).float().eval()
    if kind == "tied":
        del weights["lm_head.weight"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith(".bias") or kind == "tied" for name in missing), missing
    for name in missing:
        if name.endswith(".bias"):
            model.get_parameter(name).data.zero_()
    model.tie_weights()
    if n_vocab != BASE["vocab_size"]:
        torch.manual_seed(n_vocab)
        model.resize_token_embeddings(n_vocab, mean_resizing=False)
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table.data[BASE["vocab_size"] :] = 0.2 * torch.randn(n_vocab - BASE["vocab_size"], table.shape[1])
    return model


def shake(model: PeftModel, spread: float) -> None:
    """Random values for everything that the adapter trains, of a size that moves the logits plainly.

    In place, since the two halves of a tied adapter share their storage.
    """
    for name, values in model.named_parameters():
        if not values.requires_grad:
            continue
        noise = torch.randn_like(values)
        if "lora_embedding_A" in name or "lora_A" in name:
            values.data.copy_(noise * 0.6 * values.shape[-1] ** -0.5)
        elif "lora_embedding_B" in name:
            values.data.copy_(noise * 0.8)
        elif "lora_B" in name:
            values.data.copy_(noise * 0.3)
        elif "magnitude" in name:
            values.data *= 1 + 0.2 * noise
        else:  # biases and copies of the base's own tensors
            values.data += spread * noise


def make_adapter(recipe: Recipe, seed: int) -> None:
    """Writes one folder as PEFT does, without its model card."""
    torch.manual_seed(seed)
    model = get_peft_model(
        base(recipe.base, recipe.n_vocab), LoraConfig(task_type="CAUSAL_LM", **copy.deepcopy(recipe.config))
    )
    if recipe.name not in CHANGED_BASE:
        shake(model, recipe.noise)
    folder = HERE / recipe.name
    model.save_pretrained(folder, save_embedding_layers=recipe.save_embeddings)
    (folder / "README.md").unlink()
    with_config(base_model_name_or_path="base")(folder)
    if recipe.edit:
        recipe.edit(folder)


def logits(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([tokens])).logits[0].float().numpy()


def alone(recipe: Recipe, tokens: list[int]) -> np.ndarray:
    """Logits of one adapter, as PEFT reads its folder."""
    return logits(PeftModel.from_pretrained(base(recipe.base, recipe.n_vocab), HERE / recipe.name), tokens)


def stacked(stack: list[tuple[str, float]], tokens: list[int]) -> np.ndarray:
    """Logits of a stack by PEFT's `cat` combination."""
    names = list(dict.fromkeys(name for name, _ in stack))
    model = PeftModel.from_pretrained(base("untied"), HERE / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(HERE / name, adapter_name=name)
    model.add_weighted_adapter([n for n, _ in stack], [w for _, w in stack], "stack", combination_type="cat")
    model.set_adapter("stack")
    return logits(model, tokens)


def with_dora_first(tokens: list[int]) -> np.ndarray:
    """PEFT adds active adapters one after another; a DoRA in front then scales the base alone, as a sum must."""
    model = PeftModel.from_pretrained(base("untied"), HERE / "dora", adapter_name="dora")
    model.load_adapter(HERE / "plain", adapter_name="plain")
    model.base_model.set_adapter(["dora", "plain"])
    return logits(model, tokens)


def quantised_pooling() -> None:
    """PEFT offers QA-LoRA on GPTQ layers only; its arithmetic needs none, so plain ones may have it too."""
    original = Linear.resolve_lora_variant

    def resolve(self: Linear, *, config: LoraConfig, **rest: Any) -> Any:
        return QALoraLinearVariant() if config.use_qalora else original(self, config=config, **rest)

    Linear.resolve_lora_variant = resolve


def write_cases(found: list[tuple[Case, np.ndarray]]) -> None:
    """Writes cases.json and logits.npz."""
    text = ",\n ".join(json.dumps(case.__dict__) for case, _ in found)
    (HERE / "cases.json").write_text(f"[{text}]\n", encoding="utf-8")
    np.savez_compressed(HERE / "logits.npz", **{case.name: values for case, values in found})


def make_bin() -> None:
    """Writes one_rank_bin/."""
    model = PeftModel.from_pretrained(base("untied"), HERE / "one_rank")
    model.save_pretrained(HERE / "one_rank_bin", safe_serialization=False)
    (HERE / "one_rank_bin" / "README.md").unlink()
    with_config(base_model_name_or_path="base")(HERE / "one_rank_bin")


def make_gguf(converter: str) -> None:
    """Writes plain.gguf."""
    command = [sys.executable, converter, "--outtype", "f32", "--outfile", str(HERE / "plain.gguf")]
    subprocess.run([*command, "--base", str(HERE / "base"), str(HERE / "plain")], check=True)


def main(converter: str) -> None:
    """Makes everything anew."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    quantised_pooling()
    make_base()
    found = [(Case(kind, kind, [], TOKENS), logits(base(kind), TOKENS)) for kind in ("untied", "tied")]
    for seed, recipe in enumerate(RECIPES):
        make_adapter(recipe, seed)
        if recipe.name in CHANGED_BASE:
            continue
        kind = "tied" if recipe.base == "tied" else "untied"
        for i, tokens in enumerate(recipe.tokens):
            case = Case(recipe.name + ("_uninvoked" if i else ""), kind, [(recipe.name, 1.0)], tokens)
            found.append((case, alone(recipe, tokens)))
    for name, stack in STACKS.items():
        found.append((Case(name, "untied", stack, TOKENS), stacked(stack, TOKENS)))
    found.append(
        (Case("stack_dora", "untied", [("dora", 1.0), ("plain", 1.0)], TOKENS), with_dora_first(TOKENS))
    )
    write_cases(found)
    make_bin()
    make_gguf(converter)


if __name__ == "__main__":
    main(sys.argv[1])
