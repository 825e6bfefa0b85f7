"""`python -m bench.minimal FILE`: the least that asyncio can do for the same answer.

Reads a request as JSON, sends the bytes of the file, closes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


async def serve(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if json.loads(await reader.read(4096))["command"] == "list":
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]).read_bytes()))
