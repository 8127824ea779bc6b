"""Prompt formats by name, for models that carry no chat template: each as its authors published it.

Must not know tokens, models or how a template is run. A format is a Jinja template, with what it demands of messages
and of the vocabulary. Everything else about a prompt (control tokens in messages, the beginning of the text) is
`chat.py`'s, for these as for a model's own template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfer.errors import RequestError

__all__ = ["FORMATS", "PromptFormat", "named", "recognised"]


@dataclass(frozen=True)
class PromptFormat:
    """One way to write a conversation as a prompt."""

    name: str
    template: str
    """Jinja that reads `turns` (the messages of user and assistant, in turns), `system`, `bos_token`, `eos_token` and
    `add_generation_prompt`."""
    source: str
    """Who published it."""
    models: str = r"(?!)"
    """Names of models that it is meant for: an expression for the whole name in small letters, '-' for '_' and ' '."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer."""
    controls: tuple[str, ...] = ()
    """Tokens that the vocabulary must have, since the format is nothing without them."""
    tags: tuple[str, ...] = ()
    """Texts of the format that messages must not hold, since nothing tells them from the format's own."""
    system: str | None = None
    """What the model is told unless a system message says otherwise."""
    takes_system: bool = True
    takes_input: bool = False
    """Whether a message of the user may have an `input` beside its `content`."""

    def variables(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> dict[str, Any]:
        """What the template reads, of checked messages.

        Raises:
            RequestError: The format has no place for something in them.
        """
        told = messages[:1] if messages[0]["role"] == "system" else ()
        if told and not self.takes_system:
            raise self._error("no system message", "one")
        for i, message in enumerate(messages):
            role = "system" if told and i == 0 else ("user", "assistant")[(i - len(told)) % 2]
            self._check(message, role, f"messages[{i}]")
        turns = messages[len(told) :]
        if not turns or (add_generation_prompt and turns[-1]["role"] != "user"):
            raise self._error("a message of the user to answer", "none behind the last answer")
        told_text = told[0]["content"] if told else self.system
        return {"turns": list(turns), "system": told_text, "add_generation_prompt": add_generation_prompt}

    def _check(self, message: Mapping[str, Any], role: str, where: str) -> None:
        if message["role"] != role:
            raise self._error(f"user and assistant in turns, {role} in {where}", repr(message["role"])[:80])
        fields = ("content", "input") if self.takes_input and role == "user" else ("content",)
        for name in message.keys() - {"role", *fields}:
            raise self._error(f"only role, {', '.join(fields)} in {where}", repr(name)[:80])
        for name in fields:
            text = message.get(name, "")
            if not isinstance(text, str):
                raise self._error(f"a string as {name} of {where}", type(text).__name__)
            for tag in self.tags:
                if tag in text:
                    raise self._error(f"none of the format's own tags in {where}", repr(tag))

    def _error(self, expected: str, found: str) -> RequestError:
        return RequestError(f"prompt format {self.name}: expected {expected}; found {found}")


def named(name: str) -> PromptFormat:
    """The format of this name.

    Raises:
        RequestError: There is none; the names are listed.
    """
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    raise RequestError(f"format: expected one of {', '.join(FORMATS)}, found {name!r:.80}")


def recognised(model: str) -> PromptFormat | None:
    """The format of models with this name, as far as names tell."""
    spelled = re.sub(r"[_\s]+", "-", model.strip().lower().rpartition("/")[2])
    return next((one for one in FORMATS.values() if re.fullmatch(one.models, spelled)), None)


def _conversation(user: str, opening: str, answer: str) -> str:
    """A template of turns: what the user says, what opens an answer, and an answer."""
    return (
        "{% for turn in turns %}{% if turn.role == 'user' %}" + user
        + "{% if add_generation_prompt or not loop.last %}" + opening + "{% endif %}"
        + "{% else %}" + answer + "{% endif %}{% endfor %}"
    )  # fmt: skip


_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = ", paired with an input that provides further context"
_RESPOND = ". Write a response that appropriately completes the request."
_POLITE = "The assistant gives helpful, detailed, and polite answers to the "

_LAST_OF_USER = "loop.index0 == (turns|length - 1) // 2 * 2"


def _alpaca(name: str, after_response: str, **fields: Any) -> PromptFormat:
    task = f"'{_TASK}' ~ ('{_WITH_INPUT}' if turns[0].input else '') ~ '{_RESPOND}'"
    return PromptFormat(
        name,
        "{{ (" + task + ") if system is none else system }}{{ '\\n\\n' }}"
        + _conversation(
            "{{ '### Instruction:\\n' ~ turn.content ~ '\\n\\n' }}"
            "{% if turn.input %}{{ '### Input:\\n' ~ turn.input ~ '\\n\\n' }}{% endif %}",
            "{{ '### Response:" + after_response + "' }}",
            "{{ turn.content ~ eos_token }}",
        ),
        takes_input=True,
        **fields,
    )  # fmt: skip


def _mistral(name: str, space: str, **fields: Any) -> PromptFormat:
    return PromptFormat(
        name,
        "{{ bos_token }}"
        + _conversation(
            "{{ '[INST]" + space + "' ~ (system ~ '\\n\\n' if system is not none and " + _LAST_OF_USER + " else '')"
            " ~ turn.content ~ '[/INST]' }}",
            "",
            "{{ '" + space + "' ~ turn.content.rstrip() ~ eos_token }}",
        ),
        controls=("[INST]", "[/INST]"),
        **fields,
    )  # fmt: skip


_LIST = (
    _alpaca(
        "alpaca-lora", "\\n", source="tloen/alpaca-lora, templates/alpaca.json",
        models=r"(.*-)?alpaca-lora(-.*)?|alpaca-\d+b-lora(-.*)?",
    ),
    _alpaca(
        "alpaca", "", source="tatsu-lab/stanford_alpaca, train.py", models=r"(stanford-)?alpaca(-\d+b)?(-.*)?",
    ),
    PromptFormat(
        "vicuna-v0",
        "{{ system }}\n\n### "
        + _conversation("Human: {{ turn.content }}\n### ", "Assistant:", " {{ turn.content }}\n### "),
        source="lm-sys/FastChat, docs/vicuna_weights_version.md, example prompt of weights v0",
        models=r"(.*-)?vicuna-\d+b-(delta-)?v0(-.*)?",
        system=f"A chat between a curious human and an artificial intelligence assistant. {_POLITE}human's questions.",
        stops=("###",),
    ),
    PromptFormat(
        "vicuna",
        "{{ system }} "
        + _conversation("USER: {{ turn.content }} ", "ASSISTANT:", " {{ turn.content }}{{ eos_token }}"),
        source="lm-sys/FastChat, conversation templates of v1.1, v1.3 and v1.5",
        models=r"(.*-)?vicuna-\d+b-(delta-)?v1\.[135](-.*)?",
        system=f"A chat between a curious user and an artificial intelligence assistant. {_POLITE}user's questions.",
    ),
    PromptFormat(
        "llama-2",
        _conversation(
            "{% set told = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' if system is not none and loop.first else '' %}"
            "{{ bos_token }}[INST] {{ (told ~ turn.content)|trim }} [/INST]",
            "",
            " {{ turn.content|trim }} {{ eos_token }}",
        ),
        source="meta-llama/llama, generation.py", models=r"(.*-)?llama-2-\d+b-chat(-.*)?",
        tags=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    PromptFormat(
        "koala",
        "BEGINNING OF CONVERSATION: "
        + _conversation("USER: {{ turn.content }} ", "GPT:", " {{ turn.content }}{{ eos_token }}"),
        source="young-geng/EasyLM, docs/koala.md", models=r"(.*-)?koala(-.*)?", takes_system=False,
    ),
    PromptFormat(
        "gpt4all",
        _conversation("{{ turn.content ~ '\\n' }}", "", "{{ turn.content ~ eos_token }}"),
        source="nomic-ai/gpt4all, train.py of GPT4All-LoRA", models=r"(.*-)?gpt4all-lora(-.*)?", takes_system=False,
    ),
    PromptFormat(
        "chatml",
        "{% if system is not none %}{{ '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' }}{% endif %}"
        + _conversation(
            "{{ '<|im_start|>user\\n' ~ turn.content ~ '<|im_end|>\\n' }}",
            "{{ '<|im_start|>assistant\\n' }}",
            "{{ turn.content ~ '<|im_end|>\\n' }}",
        ),
        source="openai/openai-python, chatml.md; Qwen, SmolLM and others",
        models=r"(qwen.*|smollm.*|yi)-(chat|instruct)(-.*)?|yi-[\d.]+-?\d*b-chat(-.*)?|openhermes.*",
        controls=("<|im_start|>", "<|im_end|>"), stops=("<|im_end|>",),
    ),
    PromptFormat(
        "llama-3",
        "{{ bos_token }}"
        "{% if system is not none %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' ~ system|trim ~ '<|eot_id|>' }}{% endif %}"
        + _conversation(
            "{{ '<|start_header_id|>user<|end_header_id|>\\n\\n' ~ turn.content|trim ~ '<|eot_id|>' }}",
            "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
            "{{ turn.content|trim ~ '<|eot_id|>' }}",
        ),
        source="meta-llama/llama3, llama/tokenizer.py", models=r"(.*-)?llama-3(\.\d)?-\d+b-instruct(-.*)?",
        controls=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), stops=("<|eot_id|>",),
    ),
    PromptFormat(
        "mistral",
        "{{ bos_token }}"
        + _conversation(
            "[INST] {{ system ~ '\\n\\n' if system is not none and loop.first else '' }}{{ turn.content }} [/INST]",
            "",
            " {{ turn.content }}{{ eos_token }}",
        ),
        source="mistralai/mistral-common, version 1: Mistral 7B Instruct v0.1 and v0.2",
        models=r"(.*-)?mistral-7b-instruct-v0\.[12](-.*)?", tags=("[INST]", "[/INST]"),
    ),
    _mistral(
        "mistral-v3", " ", source="mistralai/mistral-common, version 3: Mistral 7B Instruct v0.3",
        models=r"(.*-)?mistral-7b-instruct-v0\.3(-.*)?",
    ),
    _mistral(
        "mistral-tekken", "", source="mistralai/mistral-common, version 3 with Tekken: Mistral Nemo Instruct",
        models=r"(.*-)?mistral-nemo-instruct(-.*)?",
    ),
    PromptFormat(
        "gemma",
        "{{ bos_token }}"
        + _conversation(
            "{{ '<start_of_turn>user\\n' ~ turn.content|trim ~ '<end_of_turn>\\n' }}",
            "{{ '<start_of_turn>model\\n' }}",
            "{{ turn.content|trim ~ '<end_of_turn>\\n' }}",
        ),
        source="google/gemma-2-2b-it, tokenizer_config.json", models=r"(.*-)?gemma-(\d+-)?\d+b-it(-.*)?",
        controls=("<start_of_turn>", "<end_of_turn>"), stops=("<end_of_turn>",), takes_system=False,
    ),
    PromptFormat(
        "phi-3",
        "{% if system is not none %}{{ '<|system|>\\n' ~ system ~ '<|end|>\\n' }}{% endif %}"
        + _conversation(
            "{{ '<|user|>\\n' ~ turn.content ~ '<|end|>\\n' }}",
            "{{ '<|assistant|>\\n' }}",
            "{{ turn.content ~ '<|end|>\\n' }}",
        ),
        source="microsoft/Phi-3.5-mini-instruct, tokenizer_config.json",
        models=r"phi-3(\.5)?-(mini|small|medium).*-instruct(-.*)?",
        controls=("<|user|>", "<|assistant|>", "<|end|>"), stops=("<|end|>",),
    ),
)  # fmt: skip

FORMATS: dict[str, PromptFormat] = {one.name: one for one in _LIST}
"""Every format by its name; the first one that recognises a model's name is its format."""
