"""What a stream puts into the data of an event instead of the payload alone: the whole event, in one of two forms."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from functools import lru_cache
from typing import Any

import msgspec

from sse_pg.core.event import Event, event_json, timestamp

#: The attributes of a CloudEvent that are not extensions, as far as a header could have the name.
_OWN_ATTRIBUTES = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data")
)
_ATTRIBUTE = re.compile("[a-z0-9]+")
_INTEGER = re.compile("-?(?:0|[1-9][0-9]{0,9})")
_MAX_INTEGER = 2**31 - 1

_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Envelope(msgspec.Struct, frozen=True):
    """A form of the data. Equal ones make equal data, so that streams with equal ones can share it."""

    @abstractmethod
    def data(self, event: Event) -> str:
        """Return an event as JSON text. The payload's own text is part of it, unchanged."""


class WholeEvent(Envelope, frozen=True):
    """The event as the HTTP interface shows it."""

    def data(self, event: Event) -> str:
        """Return the event as JSON text."""
        return _encode(event_json(event)).decode()


class CloudEvent(Envelope, frozen=True):
    """The event in the JSON format of CloudEvents 1.0. The channel is its subject."""

    source: str
    """The ``source``: a URI that identifies the log. Together with it, an event's id is unique."""

    def data(self, event: Event) -> str:
        """Return the event as JSON text.

        A header becomes an extension attribute if its name is allowed there: lower-case letters and digits, and not
        the name of another attribute. Other names are left out instead of being changed, because ``X-Publisher`` or
        ``Publisher`` must not become ``publisher``. A value that an attribute cannot have becomes a string with its
        JSON text; null is no attribute.
        """
        attributes: dict[str, Any] = {
            "specversion": "1.0",
            "id": str(event.id),
            "source": self.source,
            "type": event.event_type,
            "subject": event.channel,
            "time": timestamp(event.created_at),
            "datacontenttype": "application/json",
        }
        if event.headers is not None:
            for name, value in _headers.decode(event.headers).items():
                text = bytes(value).decode()
                if _ATTRIBUTE.fullmatch(name) and name not in _OWN_ATTRIBUTES and text != "null":
                    attributes[name] = value if _is_attribute(text) else text
        attributes["data"] = msgspec.Raw(event.payload.encode())
        return _encode(attributes).decode()


def _is_attribute(text: str) -> bool:
    """Return whether a JSON value can be an attribute: a string, a boolean or an integer of 32 bits."""
    if text.startswith('"') or text in ("true", "false"):
        return True
    return _INTEGER.fullmatch(text) is not None and abs(int(text)) <= _MAX_INTEGER


@lru_cache(16)
def source_of(log_identity: str) -> str:
    """Return the ``source`` for the log that sse_pg.log_identity() names.

    The timeline is left out, so that a failover keeps the source; the ids jump there. The rest is hashed, because
    it is nobody's business which cluster it is.
    """
    cluster, _timeline, *others = log_identity.split("/")
    return f"urn:sse-pg:{hashlib.sha256('/'.join([cluster, *others]).encode()).hexdigest()[:16]}"


WHOLE = WholeEvent()
