"""Answer a prompt, or chat.

The prompt is the argument, what comes through a pipe, or both with an empty line between them. Without either,
on a terminal, it chats. Messages become a prompt by the model's own chat template, or by the prompt format that
--format names or that models of its name have; --raw continues the prompt as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from pyinfer.cli import answer, conversation, opened, terminal
from pyinfer.cli import options as common
from pyinfer.errors import RequestError

if TYPE_CHECKING:
    from pyinfer import Model
    from pyinfer.answering import Options


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    common.add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to answer; - is what is piped in")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it stands, without chat template"
    )
    parser.add_argument(
        "--parse-special",
        action="store_true",
        help="with --raw: read the spelling of control tokens as those tokens, for a template of your own",
    )
    parser.add_argument(
        "-n", "--max-tokens", type=common.count(0), metavar="N", help="tokens of the answer at most"
    )
    parser.add_argument(
        "--ctx",
        type=common.context,
        metavar="N",
        help="tokens of prompt and answer together (default: 4096 or what the model was trained for); "
        "fit: as many of those as the free memory holds",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this; repeatable"
    )
    parser.add_argument("--stats", action="store_true", help="speed and memory, on standard error")
    common.add_lora(parser)
    parser.add_argument(
        "--merge",
        action="store_true",
        help="put the adapters into the weights, once, into the cache; what they change stays in floats or gets 8 bits",
    )
    conversation.add_conversation(parser)
    common.add_engine(parser)
    common.add_sampling(parser)


def execute(options: argparse.Namespace) -> int:
    """Answers the prompt, or hands over to the chat."""
    params = common.sampling_params(options)
    conversation.refuse_with_raw(options)
    asked = conversation.chat_options(options)
    if options.parse_special and not options.raw:
        raise RequestError("--parse-special needs --raw, since messages spell no control tokens")
    prompt = _prompt(options.prompt, optional=options.messages is not None)
    said = conversation.messages(prompt, options)
    model = _load(options)
    wanted: Options = {"params": params, "max_tokens": options.max_tokens, "stop": options.stop or ()}
    if options.raw:
        wanted["parse_special"] = options.parse_special
        _note_control_tokens(model, prompt, options)
    if prompt is None and options.messages is None:
        from pyinfer.cli import chat

        return chat.chat(model, wanted, asked, said, raw=options.raw, stats=options.stats)
    stream = (
        model.stream(prompt or "", **wanted) if options.raw else model.chat_stream(said, **wanted, **asked)
    )
    with stream:
        completion = answer.write(stream)
    for line in answer.remarks(completion, model.context, options.max_tokens, options.stats):
        terminal.note(line)
    return 0


def _prompt(argument: str | None, *, optional: bool) -> str | None:
    """The argument and what is piped in; None when the person at the terminal is to be asked, or when there is nothing
    and that is allowed.
    """
    piped = None if sys.stdin.isatty() else opened.text(sys.stdin.buffer, "standard input")
    if piped is not None:  # the end of its last line, which `echo` puts there, is no part of it
        piped = re.sub(r"\r?\n\Z", "", piped)
    if argument == "-":
        argument = None
    if argument is None and piped is None:
        if not (optional or sys.stdout.isatty()):
            raise RequestError(
                "the prompt is missing: give one as an argument or through a pipe, or chat on a terminal"
            )
        return None
    prompt = "\n\n".join(part for part in (argument, piped) if part)
    if not prompt and optional:
        return None
    if not prompt:
        raise RequestError(
            "the prompt is empty: give one as an argument or through a pipe, or use a terminal"
        )
    return prompt


def _note_control_tokens(model: Model, prompt: str | None, options: argparse.Namespace) -> None:
    pieces = {} if options.parse_special or prompt is None else model.tokenizer.special_pieces()
    spelled = next((piece for piece in pieces if len(piece) > 2 and piece in (prompt or "")), None)
    if spelled:
        terminal.note(f"pyinfer: {spelled} is taken as text; --parse-special makes it a control token")


def _load(options: argparse.Namespace) -> Model:
    import pyinfer
    from pyinfer import hub

    chosen = opened.activations(options)
    if options.merge and not (options.lora and options.cache):
        raise RequestError("--merge needs --lora, and the cache to keep the merged model in")
    if options.merge and options.weights:
        raise RequestError("--weights: expected none beside --merge; convert --lora takes both")
    with terminal.progress() as progress:
        if options.merge:
            from pyinfer import merging

            path = merging.merged(
                options.model,
                merging.loaded(options.lora),
                progress=progress,
                when_made=lambda made: terminal.note_merged(made.touched, made.added_bytes, made.retention),
            )
        else:
            path = hub.resolve(options.model, cache=options.cache, weights=options.weights, progress=progress)
    stack = [] if options.merge else options.lora
    model = pyinfer.load(
        path,
        threads=options.threads,
        context=options.ctx,
        activations=chosen,
        kv=options.kv,
        huge_pages=options.huge_pages,
        adapters=stack,
    )
    if options.ctx == "fit":
        terminal.note(f"pyinfer: a context of {model.context} tokens fits into the free memory")
    return model
