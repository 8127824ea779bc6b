"""Makes prompts.json: prompts as other implementations write them, which `tests/py/test_prompt_formats.py` compares.

Run it where these are installed (no weights are needed):

    pip install transformers mistral-common jinja2
    pip install --no-deps fschat==0.2.36 llama-models==0.3.0
    python tests/golden/make_prompts.py TEMPLATES

TEMPLATES is a folder with the chat templates of `models/templates` of llama.cpp; of what they render only checksums are
kept.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Messages = list[dict[str, Any]]
HERE = Path(__file__).parent

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Name a river."}
ANSWER = {"role": "assistant", "content": "The Rhine."}
MORE = {"role": "user", "content": "Where?\nSay it."}
PLAIN: dict[str, Messages] = {"one": [ASK], "two": [ASK, ANSWER, MORE]}
TOLD: dict[str, Messages] = {"told": [SYSTEM, ASK], "told two": [SYSTEM, ASK, ANSWER, MORE]}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather <b>&</b> é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "City"},
                    "unit": {"enum": ["c", "f"]},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln"}},
        }
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": '{"t": 20}'}
CASES: dict[str, dict[str, Any]] = {
    "one": {"messages": [ASK]},
    "told": {"messages": [SYSTEM, ASK, ANSWER, MORE]},
    "tools": {"messages": [SYSTEM, ASK], "tools": TOOLS},
    "result": {"messages": [ASK, CALL, RESULT], "tools": TOOLS},
    "after": {"messages": [ASK, CALL, RESULT, ANSWER, MORE], "tools": TOOLS},
    "documents": {"messages": [ASK], "documents": [{"title": "Rivers", "text": "The Rhine is one."}]},
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


def fastchat(name: str) -> Callable[[Messages], str]:
    """FastChat's conversation of a name; that of Vicuna v0 is made of the parts that its documents give
    (docs/vicuna_weights_version.md: an empty line behind the system message, and a line a turn).
    """
    from fastchat.conversation import Conversation, SeparatorStyle, get_conv_template

    def text(messages: Messages) -> str:
        if name == "v0":
            one = get_conv_template("one_shot")
            made = Conversation(
                name, system_template="{system_message}\n", system_message=one.system_message,
                roles=("Human", "Assistant"), messages=[],
                sep_style=SeparatorStyle.ADD_COLON_SINGLE, sep="\n### ",
            )  # fmt: skip
        else:
            made = get_conv_template(name)
        if messages[0]["role"] == "system":
            made.set_system_message(messages[0]["content"])
        for message in messages:
            if message["role"] != "system":
                made.append_message(made.roles[message["role"] == "assistant"], message["content"])
        made.append_message(made.roles[1], None)
        return str(made.get_prompt())

    return text


def template(path: Path, **fixed: Any) -> Callable[[Messages], str]:
    """A published template, rendered by transformers."""
    return lambda messages: rendered(path, messages=messages, **NAMES, **fixed)


def rendered(path: Path, **variables: Any) -> str:
    """What transformers renders, at a fixed time."""
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return NOW

    chat_template_utils.datetime = Clock
    found, _ = chat_template_utils.render_jinja_template(
        conversations=[variables.pop("messages")],
        chat_template=path.read_text(encoding="utf-8"),
        add_generation_prompt=True,
        **variables,
    )
    return str(found[0])


def llama3() -> Callable[[Messages], str]:
    """Meta's own encoder, decoded again."""
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    tokenizer = Tokenizer.get_instance()

    def text(messages: Messages) -> str:
        ends = {"assistant": {"stop_reason": "end_of_turn"}}
        said = [RawMessage(**message, **ends.get(message["role"], {})) for message in messages]
        return str(tokenizer.decode(ChatFormat(tokenizer).encode_dialog_prompt(said).tokens))

    return text


def mistral(version: str, **options: Any) -> Callable[[Messages], str]:
    """Mistral's own encoder; the text is all pieces joined."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = getattr(MistralTokenizer, version)(**options)

    def text(messages: Messages) -> str:
        return str(tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages)).text)

    return text


def prompts(templates: Path) -> list[dict[str, Any]]:
    """Prompts of every format that another implementation knows."""
    both = PLAIN | TOLD
    qwen = template(templates / "Qwen-Qwen2.5-7B-Instruct.jinja")
    wanted: list[tuple[str, Callable[[Messages], str], dict[str, Messages]]] = [
        ("vicuna-v0", fastchat("v0"), PLAIN),
        ("vicuna", fastchat("vicuna_v1.1"), both),
        ("koala", fastchat("koala_v1"), PLAIN),
        ("llama-2", fastchat("llama-2"), both),
        ("chatml", qwen, TOLD),
        ("llama-3", llama3(), both),
        ("gemma", template(templates / "google-gemma-2-2b-it.jinja"), PLAIN),
        ("phi-3", template(templates / "microsoft-Phi-3.5-mini-instruct.jinja"), both),
        ("mistral", mistral("v1"), both),
        ("mistral-v3", mistral("v3"), both),
        ("mistral-tekken", mistral("v3", is_tekken=True), both),
    ]
    return [
        {"format": name, "messages": messages, "text": write(messages)}
        for name, write, cases in wanted
        for messages in cases.values()
    ]


def checksums(templates: Path) -> dict[str, dict[str, str]]:
    """SHA-256, cut to 16 digits, of every published template's text for every case; `refused` where it takes none."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(templates.glob("*.jinja")):
        found[path.name] = {}
        for case, variables in CASES.items():
            try:
                text = rendered(path, **json.loads(json.dumps(variables)), **NAMES)
                found[path.name][case] = hashlib.sha256(text.encode()).hexdigest()[:16]
            except Exception:
                found[path.name][case] = "refused"
    return found


def main() -> None:
    """Writes prompts.json."""
    templates = Path(sys.argv[1])
    made = {"prompts": prompts(templates), "cases": CASES, "names": NAMES, "now": NOW.isoformat()}
    made["templates"] = checksums(templates)
    text = json.dumps(made, ensure_ascii=False, indent=1)
    (HERE / "prompts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
