"""A server that speaks TGI's protocol without a model: it repeats the words of the prompt.

`python fake_tgi.py` serves it on a free port and prints the URL.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle, islice
from typing import Any


class FakeTgi:
    """`generating` counts running prompts; `script`, if set, is the answer to every prompt."""

    def __init__(self) -> None:
        self.url = ""
        self.generating = 0
        self.script: bytes | None = None
        self.bodies: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests, one after the other."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                path, body = await _request(reader)
                if body:
                    self.bodies.append(body)
                    await self._generate(body, writer)
                else:
                    writer.write(_answer(200, _PAGES.get(path, {})))
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.script is not None:
            writer.write(self.script)
            return
        parameters = body["parameters"]
        if not isinstance(parameters.get("temperature", 1.0), int | float):
            writer.write(_answer(422, {"error": "temperature: not a number", "error_type": "validation"}))
            return
        self.generating += 1
        try:
            writer.write(HEAD)
            words = body["inputs"].split()
            count = parameters.get("max_new_tokens", 100)
            for number, word in enumerate(islice(cycle(words), count), start=1):
                writer.write(event(f" {word}", last=number == count, said=number, read=len(words)))
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
        finally:
            self.generating -= 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PAGES = {"/info": {"model_id": "tiny", "max_concurrent_requests": 128}}


def event(text: str, *, last: bool = False, said: int = 1, read: int = 1, reason: str = "length") -> bytes:
    """One event of a stream, as an HTTP chunk."""
    details = {"finish_reason": reason, "generated_tokens": said, "input_length": read, "seed": None}
    return chunk(
        {
            "index": said,
            "token": {"id": 1, "text": text, "logprob": -1.0, "special": False},
            "generated_text": "…" if last else None,
            "details": details if last else None,
        }
    )


def chunk(said: dict[str, Any]) -> bytes:
    """Any JSON as an event in an HTTP chunk."""
    data = f"data:{json.dumps(said)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def fake_tgi() -> AsyncIterator[FakeTgi]:
    """Serve one on loopback."""
    fake = FakeTgi()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        await server.wait_closed()


async def _request(reader: asyncio.StreamReader) -> tuple[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next((line[15:] for line in head.split("\r\n") if line.startswith("content-length:")), "0")
    body = await reader.readexactly(int(length))
    return head.split(" ")[1], json.loads(body) if body else None


def _answer(status: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


async def main() -> None:
    """Serve until killed."""
    async with fake_tgi() as fake:
        print(fake.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
