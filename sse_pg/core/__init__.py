"""The pure parts: ids, cursors, events, the wire format, metrics. No input or output, no clock, no asyncio."""
