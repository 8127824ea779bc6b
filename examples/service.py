r"""A service for several users at once: one model, a conversation for each connection, the standard library alone.

    python examples/service.py smollm2 --port 7070
    printf '{"say": "Name a river."}\n' | nc -N 127.0.0.1 7070

One JSON object a line. A request is {"say": TEXT} with, if wanted, "max_tokens", "temperature" and "seed"; what comes
back is {"text": PIECE} for each piece of the answer, then {"done": REASON}, or {"error": SENTENCE}. Users take turns
token by token; who goes away while an answer is made stops it. It listens on this machine alone, and a connection
above `--users` is told so: every conversation has memory of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pyinfer
from pyinfer.errors import PyinferError

LONGEST_LINE = 1 << 16
OPTIONS = {"max_tokens", "temperature", "seed"}


class Service:
    """Connections to one model."""

    def __init__(self, model: pyinfer.Model, users: int) -> None:
        self._model = model
        self._free = users
        self._here: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._here[writer] = task
        try:
            await self._serve(reader, writer)
        except ConnectionError:
            pass  # they are gone: nobody is left to tell
        finally:
            writer.close()
            del self._here[writer]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._free == 0:
            await send(writer, error="expected a free place, found none: come back later")
            return
        self._free -= 1
        try:
            await self._converse(reader, writer)
        finally:
            self._free += 1

    async def leave(self) -> None:
        """Ends all connections."""
        tasks = list(self._here.values())
        for writer in self._here:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            session = self._model.session()
        except PyinferError as error:  # such as too little memory for one more
            await send(writer, error=str(error))
            return
        with session:
            while line := await next_line(reader):
                try:
                    say, options = request(line)
                    await self._answer(session, writer, say, options)
                except (PyinferError, ValueError, RecursionError) as error:
                    await send(writer, error=str(error))

    async def _answer(
        self, session: pyinfer.Session, writer: asyncio.StreamWriter, say: str, options: Any
    ) -> None:
        reason = None
        async with contextlib.aclosing(session.achat_stream(say, **options)) as chunks:
            async for chunk in chunks:
                reason = chunk.finish_reason
                await send(writer, text=chunk.text)
        await send(writer, done=reason)


async def next_line(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty at the end, and where a line is longer than anybody has reason to send."""
    try:
        return await reader.readline()
    except ValueError:
        return b""


def request(line: bytes) -> tuple[str, dict[str, Any]]:
    """What is said, and the options of the answer. ValueError for what is no request."""
    asked = json.loads(line)
    if not isinstance(asked, dict) or not isinstance(asked.get("say"), str):
        raise ValueError('expected {"say": TEXT}, found something else')
    say = asked.pop("say")
    if unknown := sorted(asked.keys() - OPTIONS):
        raise ValueError(f"expected options among {', '.join(sorted(OPTIONS))}, found {unknown[0]}")
    return say, asked


async def send(writer: asyncio.StreamWriter, **answer: Any) -> None:
    """One line of JSON. Waits while the other side does not read."""
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


async def serve(model: pyinfer.Model, port: int, users: int) -> None:
    """Serves until it is stopped."""
    service = Service(model, users)
    server = await asyncio.start_server(service.connected, "127.0.0.1", port, limit=LONGEST_LINE)
    print(f"service: {model.name} on port {server.sockets[0].getsockname()[1]}", flush=True)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        await service.leave()


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options and serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name such as smollm2, or a path")
    parser.add_argument("--port", type=int, default=7070, help="0: any that is free (7070)")
    parser.add_argument("--users", type=int, default=4, metavar="N", help="connections at a time (4)")
    parser.add_argument("--ctx", type=int, default=None, metavar="N", help="tokens of a conversation")
    options = parser.parse_args(arguments)
    with (
        pyinfer.load(options.model, context=options.ctx) as model,
        contextlib.suppress(KeyboardInterrupt),
    ):
        asyncio.run(serve(model, options.port, options.users))


if __name__ == "__main__":
    main()
