"""requests-sse: reconnects by itself."""

from __future__ import annotations

from datetime import timedelta

import requests
from common import URL, end_with_stdin, gave_up, record
from requests_sse import EventSource

end_with_stdin()
try:
    with EventSource(URL, timeout=60, reconnection_time=timedelta(milliseconds=50)) as source:
        for event in source:
            record(event.last_event_id, event.type, event.data)
except requests.RequestException as error:
    gave_up(error)
