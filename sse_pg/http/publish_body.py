"""The bodies of a publish: one event, a list, ``{"events": [...]}``, or NDJSON. Payloads stay JSON text.

A large body is decoded piece by piece, so that other requests are served in between, and decoding ends at the first
piece with an error. A thread would not help: the decoder holds the interpreter's lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import msgspec
from multidict import MultiMapping

from sse_pg.core import names
from sse_pg.db.draft import Draft
from sse_pg.http import bodies
from sse_pg.http.event_headers import NOTHING, PUBLISHER, EventHeaders
from sse_pg.http.long_numbers import MAX_DIGITS, may_have_long_number, written_out
from sse_pg.http.problem import FieldError, Problem, invalid

#: Bytes of a body that are decoded at once, if no single event is larger. It takes about a millisecond.
PIECE_BYTES = 32768
#: Below this size, events are taken one by one.
MIN_PIECE_BYTES = 512
#: Maximum bytes of an event in which every wrong field is looked for: decoded into pieces, it takes up to 40 times its
#: size. Of a larger one, only the decoder's first error is reported.
MAX_EXPLAINED_BYTES = 1 << 20
#: Maximum characters of that error's field and text: the name of a field can be as long as the body.
MAX_FIELD_LENGTH, MAX_MESSAGE_LENGTH = 100, 300


#: The header that means the same as the field ``idempotencyKey`` of a single event.
KEY_HEADER = "Idempotency-Key"


class EventBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """An event as clients send it."""

    channel: str
    payload: msgspec.Raw
    event_type: str = "message"
    idempotency_key: str | None = None
    headers: dict[str, msgspec.Raw] | None = None


class _Events(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    events: msgspec.Raw


_one = msgspec.json.Decoder(EventBody)
_list = msgspec.json.Decoder(list[EventBody])
_events = msgspec.json.Decoder(_Events)
_raw = msgspec.json.Decoder(msgspec.Raw)
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS = ("channel", "eventType", "payload", "idempotencyKey", "headers")
_KINDS: dict[str, tuple[Any, str]] = {
    "channel": (str, "a string"),
    "eventType": (str, "a string"),
    "idempotencyKey": (str | None, "a string"),
    "headers": (dict[str, msgspec.Raw] | None, "an object"),
}
_SPACE = re.compile(rb"[ \t\r\n]*")
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,")
_MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

#: The text of a piece, and the events in it.
Piece = tuple[memoryview | bytes, list[EventBody]]


def key_of(headers: MultiMapping[str]) -> str | None:
    """Return the idempotency key in the headers of a request, as it was sent, or None. Raises a 422 if it is wrong.

    The draft of a standard for this header has the key in quotes. They are not removed: most clients send none, and
    a client that sends them always does.
    """
    given = headers.getall(KEY_HEADER, [])
    if not given:
        return None
    if len(given) > 1:
        raise invalid([FieldError(KEY_HEADER, "was sent more than once")])
    if fault := names.key_fault(given[0]):
        raise invalid([FieldError(KEY_HEADER, fault)])
    return given[0]


class Drafts:
    """The drafts of a body, as lists: one for each piece.

    Making and iterating it raise the 400, 413 or 422 that says what is wrong and, in a batch, with which event.
    """

    def __init__(
        self,
        body: bytes,
        headers: EventHeaders = NOTHING,
        *,
        ndjson: bool,
        key: str | None = None,
        max_body: int,
        max_payload: int,
        max_batch: int,
    ) -> None:
        """``headers``: what the request adds to those of its events. ``key``: its own idempotency key."""
        self._headers = headers
        self._max_body = max_body
        self._max_payload = max_payload
        self._max_batch = max_batch
        self._checked: dict[tuple[str, str], tuple[str, str]] = {}  # a batch has few channels and types
        self._written_out = 0
        self.batch = True
        """Whether the body is for many events, even if there is only one in it."""
        if ndjson:
            self._pieces = _lines(bodies.without_mark(body))
        else:
            self._pieces = self._open(bodies.without_mark(body), key)
        if key is not None and self.batch:
            detail = "is the key of one event; in a request with many, each event has an idempotencyKey of its own"
            raise invalid([FieldError(KEY_HEADER, detail)])

    def __iter__(self) -> Iterator[list[Draft]]:
        count = 0
        for text, events in self._pieces:
            first = count
            count += len(events)
            if count > self._max_batch:
                raise Problem(413, f"A request may contain {self._max_batch} events; this one has more.")
            drafts = self._drafts(events, first)
            if may_have_long_number(text):
                self._check_numbers(drafts, first)
            yield drafts
        if not count:
            raise invalid([FieldError("events", "must contain at least one event")])

    def _open(self, body: bytes, key: str | None) -> Iterator[Piece]:
        text = memoryview(body)
        if not body.startswith(b"{") and _char(text, _end_of_space(text, 0)) == b"[":
            return _elements(text)
        try:
            event = _one.decode(text)
        except msgspec.ValidationError as error:
            if b'"events"' in body and (listed := _list_of_events(text)) is not None:
                return _elements(listed)
            raise _wrong(text, error, "") from None
        except _MALFORMED as error:
            raise bodies.malformed(error) from None
        self.batch = False
        if key is not None:
            if event.idempotency_key not in (None, key):
                raise invalid(
                    [FieldError(KEY_HEADER, "differs from the idempotencyKey of the event; send one of them")]
                )
            event = msgspec.structs.replace(event, idempotency_key=key)
        return iter([(text, [event])])

    def _drafts(self, events: list[EventBody], first: int) -> list[Draft]:
        made: list[Draft] = []
        checked, most, added = self._checked, self._max_payload, self._headers
        for event in events:
            names = checked.get((event.channel, event.event_type))
            if names is None or event.idempotency_key is not None or event.headers is not None:
                self._check(event, self._prefix(first + len(made)))
                names = event.channel, event.event_type
                checked[names] = names
            try:
                payload = bytes(event.payload).decode()
                headers = added.text(event.headers)
            except UnicodeDecodeError as error:
                raise bodies.malformed(error) from None
            size = len(event.payload)
            if size > most or (headers is not None and (size := size + len(headers.encode())) > most):
                raise _too_large(f"{self._prefix(first + len(made))}payload", f"{size} bytes", most)
            # The names as they were first seen: equal texts are in memory once.
            made.append(Draft(names[0], names[1], payload, event.idempotency_key, headers))
        return made

    def _check_numbers(self, drafts: list[Draft], first: int) -> None:
        """Refuse numbers that are too long, and events that are too large, when the numbers are written out.

        ``1e399`` has 5 bytes here and 400 in the database and on each stream.
        """
        for place, draft in enumerate(drafts, first):
            length = 0
            for name, text in (("payload", draft.payload), ("headers", draft.headers or "")):
                field = f"{self._prefix(place)}{name}"
                written = written_out(text)
                if written is None:
                    raise invalid([FieldError(field, f"contains a number with more than {MAX_DIGITS} digits")])
                length += written
                if length > self._max_payload:
                    raise _too_large(field, f"{length} bytes with its numbers written out", self._max_payload)
                self._written_out += max(0, written - len(text))
            if self._written_out > self._max_body:
                detail = f"The numbers of the events, written out, take more than {self._max_body} bytes."
                raise Problem(413, detail)

    def _prefix(self, place: int) -> str:
        return f"events[{place}]." if self.batch else ""

    def _check(self, event: EventBody, prefix: str) -> None:
        errors = []
        if fault := names.channel_fault(event.channel):
            errors.append(FieldError(f"{prefix}channel", fault))
        if fault := names.event_type_fault(event.event_type):
            errors.append(FieldError(f"{prefix}eventType", fault))
        if event.idempotency_key is not None and (fault := names.key_fault(event.idempotency_key)):
            errors.append(FieldError(f"{prefix}idempotencyKey", fault))
        if event.headers is not None and PUBLISHER in event.headers:
            errors.append(FieldError(f"{prefix}headers.{PUBLISHER}", "is written by the server, from the token"))
        if errors:
            raise invalid(errors)


def _too_large(field: str, size: str, allowed: int) -> Problem:
    detail = f"{size}, {allowed} are allowed"
    return Problem(413, f"The payload is too large, with its headers: {detail}.", errors=[FieldError(field, detail)])


def _lines(body: bytes) -> Iterator[Piece]:
    """Decode NDJSON. Not with decode_lines(): it accepts several events on one line, and one event on several lines."""
    place = 0
    text, events, size = [], [], 0
    for number, line in enumerate(BytesIO(body), 1):
        size += len(line)
        if not line.isspace():
            try:
                events.append(_one.decode(line))
            except msgspec.ValidationError as error:
                raise _wrong(line, error, f"events[{place}].") from None
            except _MALFORMED as error:
                raise _bad_line(number, line, error) from None
            text.append(line)
            place += 1
        if size >= PIECE_BYTES:
            yield b"".join(text), events
            text, events, size = [], [], 0
    yield b"".join(text), events


def _elements(text: memoryview) -> Iterator[Piece]:
    """Decode a JSON array.

    A piece ends at a comma after a closing brace. That comma may be inside an event; the piece then cannot be decoded,
    and a smaller one is tried, down to single events.
    """
    at, place, size = _end_of_space(text, 0) + 1, 0, PIECE_BYTES
    size = min(len(text), size)  # of most bodies, all
    while (at := _end_of_space(text, at)) < len(text) and (place or _char(text, at) != b"]"):
        end = _cut(text, at, size)
        events = _try(text[at:end]) if end else None
        if events is None and size > MIN_PIECE_BYTES:
            size //= 4
            continue
        if events is None:
            end = _end_of_value(text, at)
            events = [_single(text, at, end, place)]
        yield text[at:end], events
        place += len(events)
        size = min(PIECE_BYTES, size * 2)
        at = _end_of_space(text, end)
        if _char(text, at) != b",":
            break
        at += 1
    if _char(text, at) != b"]" or _end_of_space(text, at + 1) < len(text):
        _require_json(text)
        raise bodies.malformed(ValueError("a comma or the end of the list was expected"))


def _cut(text: memoryview, at: int, size: int) -> int:
    """Return the end of a piece of about this size, before the comma or the bracket behind it; 0 if none is found."""
    if len(text) - at <= 2 * size:
        rest = bytes(text[at:]).rstrip().removesuffix(b"]").rstrip()
        return at + len(rest) if rest else 0
    found = _BETWEEN.search(text, at + size, at + 2 * size)
    return found.start() + 1 if found else 0


def _try(text: memoryview) -> list[EventBody] | None:
    try:
        return _list.decode(b"".join((b"[", text, b"]")))
    except _MALFORMED:
        return None


def _single(text: memoryview, at: int, end: int, place: int) -> EventBody:
    try:
        return _one.decode(text[at:end])
    except msgspec.ValidationError as error:
        _require_json(text)  # a body that is not JSON is a 400, also if an event before the error is wrong
        raise _wrong(text[at:end], error, f"events[{place}].") from None
    except _MALFORMED as error:
        raise bodies.malformed(error) from None


def _end_of_value(text: memoryview, at: int) -> int:
    """Return where a JSON value ends: the decoder says at which byte something follows it."""
    try:
        _raw.decode(text[at:])
    except _MALFORMED as error:
        found = re.search(r"trailing characters \(byte (\d+)\)", str(error))
        if found is None:
            raise bodies.malformed(error) from None
        return at + int(found[1]) - 1
    return len(text)


def _char(text: memoryview, at: int) -> bytes:
    return bytes(text[at : at + 1])


def _end_of_space(text: memoryview, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _require_json(text: memoryview) -> None:
    try:
        _raw.decode(text)
    except _MALFORMED as error:
        raise bodies.malformed(error) from None


def _list_of_events(text: memoryview) -> memoryview | None:
    """Return the list in ``{"events": [...]}``; None if the body is meant to be a single event."""
    try:
        listed = memoryview(_events.decode(text).events)
    except msgspec.ValidationError:
        if len(text) > MAX_EXPLAINED_BYTES:
            return None
        try:
            given = _raw_object.decode(text)
        except msgspec.ValidationError:
            return None
        if "events" not in given or given.keys() & set(_FIELDS):
            return None
        others = [FieldError(name, "unknown field; allowed: events") for name in given if name != "events"]
        raise invalid(others) from None
    except _MALFORMED as error:
        raise bodies.malformed(error) from None
    if _char(listed, 0) != b"[":
        raise invalid([FieldError("events", "must be a list of events")])
    return listed


def _bad_line(number: int, line: bytes, error: Exception) -> Problem:
    try:
        several = len(msgspec.json.Decoder(msgspec.Raw).decode_lines(line)) > 1
    except _MALFORMED:
        several = False
    if several:
        return Problem(400, f"Line {number} contains more than one event: send one event per line.")
    return Problem(400, f"Line {number} is not JSON: {error}.")


def _wrong(item: memoryview | bytes, error: msgspec.ValidationError, prefix: str) -> Problem:
    """Return a 422 that names every wrong field of an event, or of a large one the first."""
    if len(item) <= MAX_EXPLAINED_BYTES:
        try:
            return invalid(_errors(item, prefix))
        except _MALFORMED as malformed:
            return bodies.malformed(malformed)
    message = str(error)  # it ends with the path of the field: "... - at `$.channel`"
    path = message.rpartition("`$.")[2].rstrip("`")[:MAX_FIELD_LENGTH] if "`$." in message else ""
    return invalid([FieldError(f"{prefix}{path}".rstrip("."), message[:MAX_MESSAGE_LENGTH])])


def _errors(item: memoryview | bytes, prefix: str) -> list[FieldError]:
    try:
        given = _raw_object.decode(item)
    except msgspec.ValidationError:
        return [FieldError(prefix.rstrip("."), "must be an object with channel and payload")]
    errors = [FieldError(f"{prefix}{name}", "required") for name in ("channel", "payload") if name not in given]
    for name, raw in given.items():
        if name not in _FIELDS:
            errors.append(FieldError(f"{prefix}{name}", f"unknown field; allowed: {', '.join(_FIELDS)}"))
        elif name != "payload":
            kind, wanted = _KINDS[name]
            try:
                msgspec.json.decode(raw, type=kind)
            except msgspec.ValidationError:
                errors.append(FieldError(f"{prefix}{name}", f"must be {wanted}"))
    return errors
