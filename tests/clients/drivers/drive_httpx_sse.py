"""httpx-sse: reads one response; the loop around it is the caller's."""

from __future__ import annotations

import time

import httpx
from common import URL, end_with_stdin, record
from httpx_sse import connect_sse

end_with_stdin()
last_event_id, delay = "", 1.0
with httpx.Client(timeout=60) as client:
    while True:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            with connect_sse(client, "GET", URL, headers=headers) as source:
                source.response.raise_for_status()
                for event in source.iter_sse():
                    last_event_id = event.id
                    delay = delay if event.retry is None else event.retry / 1000
                    record(event.id, event.event, event.data)
        except httpx.TransportError:
            pass
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(delay)
