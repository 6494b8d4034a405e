"""The pure parts: ids, cursors, events, the wire format, metrics. They do no I/O, read no clock and use no asyncio."""
