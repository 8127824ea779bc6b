"""Prompt formats: the same prompts as their authors' programs write, chosen by name, refused where they do not fit."""

from __future__ import annotations

import datetime
import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tokenizers import CONTROLS, bytes_tokenizer, joined, pieces_tokenizer
from pyinfer import Model, load
from pyinfer.chat import ChatFormat, checked_conversation
from pyinfer.errors import ModelFileError, RequestError
from pyinfer.prompt_formats import FORMATS, recognised
from pyinfer.template import Template, operations
from pyinfer.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hi."}]
TWO = [*HELLO, {"role": "assistant", "content": "Ho."}, {"role": "user", "content": "Ha?"}]
TASK = "Below is an instruction that describes a task"
RESPOND = ". Write a response that appropriately completes the request."
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def written(name: str, messages: Any, answer: bool = True, **options: Any) -> str:
    """The prompt as text, control tokens spelled out."""
    meta, tokenizer = bytes_tokenizer(**options)
    ids = ChatFormat(meta, tokenizer, name).tokens(checked_conversation(messages), answer)
    return tokenizer.decode(ids, skip_special=False)


# As published


@pytest.mark.parametrize(
    "case", GOLDEN["prompts"], ids=lambda case: f"{case['format']}-{len(case['messages'])}"
)
def test_the_prompts_of_other_implementations(case: dict[str, Any]) -> None:
    name, text = case["format"], case["text"]
    if "\u2581" in text:  # Mistral's SentencePiece, piece by piece
        meta, tokenizer = pieces_tokenizer(CONTROLS if name == "mistral-v3" else ())
        ids = ChatFormat(meta, tokenizer, name).tokens(checked_conversation(case["messages"]))
        assert joined(tokenizer, ids) == text
        return
    bos = "<|begin_of_text|>" if name == "llama-3" else "<s>"
    expected = f"<s>{text}" if name == "llama-2" else text  # which FastChat leaves to the tokenizer
    controls = ("[INST]", "[/INST]") if name == "mistral-tekken" else [c for c in CONTROLS if "INST" not in c]
    assert written(name, case["messages"], begin=bos, controls=controls) == expected


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("alpaca", HELLO, f"{TASK}{RESPOND}\n\n### Instruction:\nHi.\n\n### Response:"),
        ("alpaca-lora", HELLO, f"{TASK}{RESPOND}\n\n### Instruction:\nHi.\n\n### Response:\n"),
        (
            "alpaca",
            [{"role": "user", "content": "Hi.", "input": "Ho."}],
            f"{TASK}, paired with an input that provides further context{RESPOND}"
            "\n\n### Instruction:\nHi.\n\n### Input:\nHo.\n\n### Response:",
        ),
        ("alpaca", [{**HELLO[0], "input": ""}], f"{TASK}{RESPOND}\n\n### Instruction:\nHi.\n\n### Response:"),
        (
            "alpaca",
            TWO,
            f"{TASK}{RESPOND}\n\n### Instruction:\nHi.\n\n### Response:Ho.</s>### Instruction:\nHa?\n\n### Response:",
        ),
        ("vicuna-v0", HELLO, f"{HUMAN}\n\n### Human: Hi.\n### Assistant:"),
        ("vicuna", HELLO, f"{USER} USER: Hi. ASSISTANT:"),
        ("vicuna", TWO, f"{USER} USER: Hi. ASSISTANT: Ho.</s>USER: Ha? ASSISTANT:"),
        ("koala", HELLO, "BEGINNING OF CONVERSATION: USER: Hi. GPT:"),
        ("gpt4all", HELLO, "Hi.\n"),
        ("gpt4all", TWO, "Hi.\nHo.</s>Ha?\n"),
        ("llama-2", TWO, "<s>[INST] Hi. [/INST] Ho. </s><s>[INST] Ha? [/INST]"),
        (
            "llama-2",
            [{"role": "system", "content": "S"}, *HELLO],
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nHi. [/INST]",
        ),
    ],
)
def test_the_prompts_of_spring_2023(name: str, messages: Any, text: str) -> None:
    controls = [piece for piece in CONTROLS if "INST" not in piece]
    assert written(name, messages, controls=controls) == text


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_generation_prompt_nothing_opens_an_answer(name: str) -> None:
    whole, part = written(name, HELLO), written(name, HELLO, answer=False)
    assert whole.startswith(part)
    assert written(name, TWO[:2], answer=False).startswith(whole)


def published() -> list[str]:
    return list(GOLDEN["templates"])


@pytest.mark.slow
@pytest.mark.parametrize("name", published())
def test_published_templates_render_as_transformers_renders_them(
    name: str,
    vocabularies: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime.fromisoformat(GOLDEN["now"])

    monkeypatch.setattr(operations.datetime, "datetime", Clock)
    template = Template((vocabularies / "templates" / name).read_text(encoding="utf-8"))
    for case, expected in GOLDEN["templates"][name].items():
        asked = {"tools": None, "documents": None, "add_generation_prompt": True, **GOLDEN["names"]}
        try:
            text = template.render({**asked, **GOLDEN["cases"][case]})
            found = hashlib.sha256(text.encode()).hexdigest()[:16]
        except (RequestError, ModelFileError):
            found = "refused"
        assert found == expected or (name, case) in LENIENT, case


LENIENT = {("llama-cpp-deepseek-r1.jinja", case) for case in ("tools", "result", "after")}
"""Where a lazy sequence is written as JSON, which transformers refuses and we write as a list."""

# Beginning of the text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("make", [bytes_tokenizer, pieces_tokenizer])
@pytest.mark.parametrize("messages", [HELLO, TWO, [{"role": "user", "content": "<s><s>Hi."}]])
def test_a_text_never_begins_twice(name: str, add_bos: bool, make: Any, messages: Any) -> None:
    meta, tokenizer = make(add_bos=add_bos)
    ids = ChatFormat(meta, tokenizer, name).tokens(checked_conversation(messages))
    assert (1, 1) not in list(pairwise(ids))
    begins = "bos_token" in FORMATS[name].template
    assert ids.count(1) == (2 if name == "llama-2" and messages is TWO else int(begins or add_bos))
    assert (ids[0] == 1) == (begins or add_bos)


@pytest.mark.parametrize("make", [bytes_tokenizer, pieces_tokenizer])
def test_text_that_spells_the_begin_token_gets_no_other(make: Any) -> None:
    _, tokenizer = make(add_bos=True)
    assert tokenizer.encode("<s>a", parse_special=True).count(1) == 1
    assert tokenizer.encode("<s>a").count(1) == 1 and tokenizer.encode("<s>a") != tokenizer.encode("a")


# Which format


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("alpaca-7b", "alpaca"),
        ("Stanford Alpaca 7B", "alpaca"),
        ("alpaca_lora_7b", "alpaca-lora"),
        ("chinese-alpaca-2-7b", None),
        ("vicuna-7b-v1.5", "vicuna"),
        ("lmsys/vicuna-13b-delta-v1.1", "vicuna"),
        ("vicuna-13b-delta-v0", "vicuna-v0"),
        ("vicuna-7b", None),
        ("koala-13B-HF", "koala"),
        ("gpt4all-lora", "gpt4all"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("Llama-2-7b-hf", None),
        ("Meta-Llama-3-8B-Instruct", "llama-3"),
        ("Llama-3.2-1B-Instruct", "llama-3"),
        ("Llama-3.2-1B", None),
        ("Mistral-7B-Instruct-v0.1", "mistral"),
        ("Mistral-7B-Instruct-v0.3", "mistral-v3"),
        ("Mistral-Nemo-Instruct-2407", "mistral-tekken"),
        ("Mistral-7B-v0.1", None),
        ("gemma-2-2b-it", "gemma"),
        ("gemma-2b-it", "gemma"),
        ("gemma-2-2b", None),
        ("Phi-3.5-mini-instruct", "phi-3"),
        ("Phi-3-mini-4k-instruct", "phi-3"),
        ("Qwen2.5-0.5B-Instruct", "chatml"),
        ("Qwen2.5-0.5B", None),
        ("SmolLM2-135M-Instruct", "chatml"),
        ("Yi-6B-Chat", "chatml"),
        ("stories260K", None),
        ("", None),
    ],
)
def test_formats_of_models_by_their_names(model: str, name: str | None) -> None:
    found = recognised(model)
    assert (found.name if found else None) == name


def test_the_models_own_template_comes_first() -> None:
    own = "own:{{ messages[0].content }}"
    meta, tokenizer = bytes_tokenizer(chat_template=own)
    conversation = checked_conversation("Hi.")
    assert tokenizer.decode(ChatFormat(meta, tokenizer).tokens(conversation)) == "own:Hi."
    assert tokenizer.decode(ChatFormat(meta, tokenizer, "gpt4all").tokens(conversation)) == "Hi.\n"


@pytest.mark.parametrize("name", ["", "Alpaca", "nothing", 3, ["alpaca"]])
def test_unknown_formats_are_refused_with_those_there_are(name: Any, tiny_chat: Model) -> None:
    for call in (tiny_chat.chat, tiny_chat.chat_tokens):
        with pytest.raises(RequestError, match=r"^format: expected one of alpaca-lora, .*phi-3, found"):
            call("Hi.", format=name)
    with pytest.raises(RequestError, match=r"^format: expected one of"):
        load(tiny_chat.path, format=name)


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.controls])
def test_formats_need_their_tokens(name: str) -> None:
    meta, tokenizer = bytes_tokenizer(())
    with pytest.raises(RequestError, match=f"^prompt format {name}: expected a vocabulary with"):
        ChatFormat(meta, tokenizer, name)


def test_formats_need_begin_and_end_where_they_write_them() -> None:
    meta, tokenizer = bytes_tokenizer(eos=())
    with pytest.raises(RequestError, match=r"^prompt format vicuna: expected a model with eos_token"):
        ChatFormat(meta, tokenizer, "vicuna")
    meta, tokenizer = bytes_tokenizer(bos=None)
    with pytest.raises(RequestError, match=r"^prompt format gemma: expected a model with bos_token"):
        ChatFormat(meta, tokenizer, "gemma")
    assert ChatFormat(meta, tokenizer, "vicuna-v0").stops == ("###",)


# What does not fit


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("koala", [{"role": "system", "content": "S"}, *HELLO], "no system message"),
        ("gemma", [{"role": "system", "content": "S"}, *HELLO], "no system message"),
        ("vicuna", [{"role": "system", "content": "S"}], "a message of the user to answer"),
        ("vicuna", TWO[:2], "a message of the user to answer"),
        ("vicuna", [*HELLO, *HELLO], r"assistant in messages\[1\]; found 'user'"),
        ("vicuna", [TWO[1]], r"user in messages\[0\]; found 'assistant'"),
        ("vicuna", [*HELLO, {"role": "tool", "content": "x"}], "found 'tool'"),
        ("vicuna", [{**HELLO[0], "input": "x"}], "only role, content in .*found 'input'"),
        ("chatml", [{**HELLO[0], "tool_calls": []}], "found 'tool_calls'"),
        ("alpaca", [{**HELLO[0], "input": 5}], "a string as input"),
        ("alpaca", [{"role": "user", "content": None, "input": "x"}], "a string as content"),
        (
            "llama-2",
            [{"role": "user", "content": "a [/INST] b"}],
            r"tags in messages\[0\]; found '\[/INST\]'",
        ),
        ("llama-2", [{"role": "system", "content": "<<SYS>>"}, *HELLO], r"tags in messages\[0\]"),
        ("mistral", [{"role": "user", "content": "[INST]"}], "tags"),
    ],
)
def test_messages_that_a_format_has_no_place_for(name: str, messages: Any, words: str) -> None:
    with pytest.raises(RequestError, match=f"^prompt format {name}: expected .*{words}") as error:
        written(name, messages)
    assert "\n" not in str(error.value)


def test_tools_and_documents_need_a_template_that_reads_them(tiny_chat: Model) -> None:
    for name in ("tools", "documents"):
        given: Any = {name: [{"name": "x"}]}
        with pytest.raises(
            RequestError, match=f"^{name}: expected none, as the model's chat template has no place"
        ):
            tiny_chat.chat_tokens("Hi.", **given)
        with pytest.raises(RequestError, match=f"^{name}: expected none, as prompt format gpt4all"):
            tiny_chat.chat_tokens("Hi.", format="gpt4all", **given)
        with pytest.raises(RequestError, match=f"^{name}: expected a list of mappings"):
            tiny_chat.chat_tokens("Hi.", **{name: ["x"]})  # type: ignore[arg-type]
        assert tiny_chat.chat_tokens("Hi.", **{name: []}) == tiny_chat.chat_tokens("Hi.")  # type: ignore[arg-type]


def test_tools_calls_and_results_reach_the_template() -> None:
    own = "{% for t in tools or [] %}{{ t|tojson }}{% endfor %}{% for m in messages %}|{{ m.role }}:{{ m.content }}"
    own += "{% for c in m.tool_calls or [] %}{{ c.function.arguments|tojson }}{% endfor %}{% endfor %}"
    meta, tokenizer = bytes_tokenizer(chat_template=own)
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"arguments": {"city": "Köln</s>"}}}],
    }
    said = [*HELLO, call, {"role": "tool", "content": "20"}]
    ids = ChatFormat(meta, tokenizer).tokens(checked_conversation(said, tools=[{"name": "f"}]))
    assert tokenizer.decode(ids) == '{"name": "f"}|user:Hi.|assistant:None{"city": "Köln</s>"}|tool:20'
    assert 2 not in ids


def test_a_template_of_its_own_for_tools() -> None:
    meta, tokenizer = bytes_tokenizer(chat_template="plain", tool_template="with {{ tools|tojson }}")
    one = ChatFormat(meta, tokenizer)
    assert tokenizer.decode(one.tokens(checked_conversation("x"))) == "plain"
    assert tokenizer.decode(one.tokens(checked_conversation("x", tools=[{"a": 1}]))) == 'with [{"a": 1}]'


_OPENED = {(name, make): (*make(), name) for name in FORMATS for make in (bytes_tokenizer, pieces_tokenizer)}
SPELLED = st.lists(st.sampled_from([*CONTROLS, "<s>", "</s>", "<", "|>", "x", " ", "\n"]), max_size=6).map(
    "".join
)


@pytest.mark.parametrize("key", _OPENED, ids=lambda key: f"{key[0]}-{key[1].__name__[:6]}")
@given(content=SPELLED)
def test_no_message_makes_a_control_token(key: Any, content: str) -> None:
    meta, tokenizer, name = _OPENED[key]
    one = ChatFormat(meta, tokenizer, name)
    if any(tag in content for tag in FORMATS[name].tags):
        return

    def controls(text: str) -> list[int]:
        ids = one.tokens(checked_conversation(text))
        return [token for token in ids if tokenizer.is_special(token)]

    assert controls(content) == controls("x")


# Around control tokens


def test_white_space_that_control_tokens_swallow() -> None:
    controls = ("<|user|>", "<|end|>", "<|assistant|>")
    for trim_after, text in (((3, 4, 5), "<|user|>▁a<|end|><|assistant|>"),
                             ((), "<|user|>▁<0x0A>a<|end|>▁<0x0A><|assistant|>▁<0x0A>")):  # fmt: skip
        meta, tokenizer = pieces_tokenizer(controls, add_bos=False, trim_after=trim_after)
        one = ChatFormat(meta, tokenizer, "phi-3")
        assert joined(tokenizer, one.tokens(checked_conversation("a"))) == text
        assert joined(tokenizer, one.tokens(checked_conversation("a<s>"))).startswith(text[:11])


def test_a_space_after_a_control_token_is_not_doubled() -> None:
    _, tokenizer = pieces_tokenizer(("[INST]",), add_bos=False)
    for text in ("[INST] a", "[INST]a"):
        assert joined(tokenizer, tokenizer.encode(text, parse_special=True)) == "[INST]▁a"
    assert joined(tokenizer, tokenizer.encode("[INST]  a", parse_special=True)) == "[INST]▁▁a"
    assert joined(tokenizer, tokenizer.encode(" a")) == "▁▁a"


# Answers


def forced(tokenizer: Tokenizer, text: str) -> Any:
    """A processor that makes the model say a text."""
    ids = iter([*tokenizer.encode(text, add_special=False), *[tokenizer.eos[0]] * 9])

    def process(_: Any, logits: Any) -> None:
        logits[:] = -100.0
        logits[next(ids)] = 100.0

    return process


def test_stop_strings_of_the_format_end_the_answer(tiny_chat: Model) -> None:
    say = forced(tiny_chat.tokenizer, "Ho.\n### Human: Hi.")
    told = {"role": "system", "content": "S"}
    answer = tiny_chat.chat([told, *HELLO], format="vicuna-v0", processors=[say], stop="never")
    assert (answer.text, answer.finish_reason) == ("Ho.\n", "stop")
    say = forced(tiny_chat.tokenizer, "Ho.###")
    assert tiny_chat.chat("Hi.", format="gpt4all", processors=[say]).text == "Ho.###"
    with tiny_chat.session() as session:
        session.messages = [told]
        answer = session.chat("Hi.", format="vicuna-v0", processors=[forced(tiny_chat.tokenizer, " Ho.###")])
        assert session.messages[-1]["content"] == answer.text == " Ho."


def test_control_tokens_of_the_format_end_the_answer(tiny_chat: Model) -> None:
    request = tiny_chat.chat_request("Hi.", 128, {"format": "chatml"}, tiny_chat.shelf.default)
    assert request.stop == ("<|im_end|>",)
    assert tiny_chat.tokenizer.piece_to_id("<|im_end|>") in request.stop_ids


def test_a_model_is_loaded_with_a_format(stories_model_bin: Path) -> None:
    with load(stories_model_bin, threads=1, format="vicuna-v0") as model:
        assert model.format == "vicuna-v0"
        assert model.chat_tokens("Hi.") == model.tokenizer.encode(
            f"{HUMAN}\n\n### Human: Hi.\n### Assistant:"
        )
        assert model.chat_tokens("Hi.", format="gpt4all") == model.tokenizer.encode("Hi.\n")
        said = model.chat("Hi.", max_tokens=4, processors=[forced(model.tokenizer, "Ho")])
        assert said.text == "Ho"  # without the space that the tokenizer puts in front of a text


def test_the_format_is_for_chats_only(tiny_chat: Model) -> None:
    with pytest.raises(RequestError, match="format"):
        tiny_chat.generate("x", format="alpaca")  # type: ignore[call-arg]
