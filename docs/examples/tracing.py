"""One trace from the request that publishes to the program that reads: python tracing.py http://127.0.0.1:8080"""

import asyncio
import sys

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from sse_pg.client import publish, subscribe

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))  # in earnest: an exporter for OTLP
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


async def place(url: str) -> None:
    with tracer.start_as_current_span("place order"):
        headers: dict[str, str] = {}
        propagate.inject(headers)  # an instrumented HTTP client does this by itself
        await publish(url, "orders", {"item": "book"}, event_type="PLACED", headers=headers)


async def react(url: str) -> None:
    async with subscribe(url, "orders", cursor=0, envelope=True) as events:
        async for event in events:
            whole = event.json()
            context = propagate.extract(whole.get("headers", {}))
            with tracer.start_as_current_span(f"react to {whole['eventType']}", context=context):
                return  # the work


async def main(url: str) -> None:
    await place(url)
    await react(url)


asyncio.run(main(sys.argv[1]))
