"""The headers that a request gives its events: those in the body, the request's trace, and who publishes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from multidict import MultiMapping

from sse_pg.auth.identity import Identity

#: The header that only the server writes.
PUBLISHER = "publisher"
#: Maximum length of a tracestate that is kept; W3C Trace Context asks for at least this much.
MAX_TRACESTATE_LENGTH = 512

#: https://www.w3.org/TR/trace-context/: version, trace, span, flags. A later version may have more after these.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?")
_TRACESTATE = re.compile(r"[ -~\t]+")

_encode = msgspec.json.Encoder().encode


class EventHeaders:
    """What one request adds to the headers of each of its events."""

    def __init__(self, trace: Mapping[str, str], publisher: str | None) -> None:
        self._trace = dict(trace)
        self._publisher = {} if publisher is None else {PUBLISHER: publisher}
        added = self._trace | self._publisher
        self._alone = _encode(added).decode() if added else None

    def text(self, given: dict[str, msgspec.Raw] | None) -> str | None:
        """Return the headers of an event as JSON text, or None; ``given`` are those that the body has for it.

        An event with a ``traceparent`` of its own belongs to that trace, and takes none of the request's.
        Raises UnicodeDecodeError if a header is not UTF-8.
        """
        if given is None:
            return self._alone
        trace = {} if "traceparent" in given else self._trace
        return _encode({**trace, **given, **self._publisher}).decode()


def of_request(headers: MultiMapping[str], identity: Identity) -> EventHeaders:
    """Return what a request adds. An invalid ``traceparent`` is ignored, as the standard asks for."""
    traceparent = headers.get("traceparent")
    if traceparent is None:
        return EventHeaders({}, identity.user) if identity.user is not None else NOTHING
    trace = {}
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is not None and not (found[1] and traceparent.startswith("00")):
        trace["traceparent"] = traceparent
        state = ",".join(headers.getall("tracestate", []))
        if len(state) <= MAX_TRACESTATE_LENGTH and _TRACESTATE.fullmatch(state):
            trace["tracestate"] = state
    return EventHeaders(trace, identity.user)


NOTHING = EventHeaders({}, None)
"""Of a request without a trace, on a server without tokens."""
