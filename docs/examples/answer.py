"""Writes the answer of a model into a channel, piece by piece: python answer.py http://127.0.0.1:8080 17"""

import asyncio
import sys

from sse_pg.client import Publisher


async def model(question):
    """Yield the pieces of an answer. Put a model here."""
    for word in f"You asked: {question} I would say that it depends.".split(" "):
        await asyncio.sleep(0.05)
        yield f"{word} "


async def answer(url, number, question):
    async with Publisher(url) as bus:
        async for piece in model(question):
            await bus.publish(f"answer.{number}", piece)
        await bus.finish(f"answer.{number}")


if __name__ == "__main__":
    asyncio.run(answer(sys.argv[1], sys.argv[2], "Is it Thursday?"))
