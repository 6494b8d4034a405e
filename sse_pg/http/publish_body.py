"""The bodies of a publish: one event, a list, ``{"events": [...]}``, or NDJSON. Payloads stay JSON text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO

import msgspec

from sse_pg.core import names
from sse_pg.db.publisher import Draft
from sse_pg.http import bodies
from sse_pg.http.problem import FieldError, Problem, invalid


class EventBody(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """An event as clients send it."""

    channel: str
    payload: msgspec.Raw
    event_type: str = "message"
    idempotency_key: str | None = None


class _Events(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    events: list[EventBody]


_one = msgspec.json.Decoder(EventBody)
_list = msgspec.json.Decoder(list[EventBody])
_events = msgspec.json.Decoder(_Events)
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
#: Maximum bytes of a JSON body in which every wrong field is looked for: decoded into pieces, it takes up to 40 times
#: its size. Of a larger one, only the decoder's first error is reported.
MAX_EXPLAINED_BYTES = 1 << 20
#: Maximum characters of that error's field and text: the name of a field can be as long as the body.
MAX_FIELD_LENGTH, MAX_MESSAGE_LENGTH = 100, 300
_FIELDS = ("channel", "eventType", "payload", "idempotencyKey")


def drafts(body: bytes, *, ndjson: bool, max_payload: int, max_batch: int) -> tuple[list[Draft], bool]:
    """Decode a body; return its drafts and whether it was a batch.

    Raises a 400, 413 or 422 that says what is wrong and, in a batch, with which event.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise bodies.malformed(error) from None
    try:
        try:
            events, batch = _decode(body, ndjson)
        except msgspec.ValidationError as error:
            if len(body) > MAX_EXPLAINED_BYTES and not ndjson:
                raise invalid([_first_error(str(error))]) from None
            raise _explain(body, ndjson) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise (_bad_line(body) if ndjson else None) or bodies.malformed(error) from None
    if batch and not events:
        raise invalid([FieldError("events", "must contain at least one event")])
    if len(events) > max_batch:
        raise Problem(413, f"A request may contain {max_batch} events; this one has {len(events)}.")
    made = []
    checked: set[tuple[str, str]] = set()  # a batch has few channels and types
    for place, event in enumerate(events):
        names = (event.channel, event.event_type)
        if names not in checked or event.idempotency_key is not None or len(event.payload) > max_payload:
            _check(event, f"events[{place}]." if batch else "", max_payload)
            checked.add(names)
        made.append(Draft(event.channel, event.event_type, bytes(event.payload).decode(), event.idempotency_key))
    return made, batch


def _decode(body: bytes, ndjson: bool) -> tuple[Sequence[EventBody], bool]:
    if ndjson:
        # Not decode_lines(): it accepts several events on one line, and one event on several lines.
        return [_one.decode(line) for line in BytesIO(body) if not line.isspace()], True
    if body.lstrip()[:1] == b"[":
        return _list.decode(body), True
    try:
        return (_one.decode(body),), False
    except msgspec.ValidationError:
        if b'"events"' not in body:
            raise
        return _events.decode(body).events, True


def _check(event: EventBody, prefix: str, max_payload: int) -> None:
    errors = []
    if fault := names.channel_fault(event.channel):
        errors.append(FieldError(f"{prefix}channel", fault))
    if fault := names.event_type_fault(event.event_type):
        errors.append(FieldError(f"{prefix}eventType", fault))
    if event.idempotency_key is not None and (fault := names.key_fault(event.idempotency_key)):
        errors.append(FieldError(f"{prefix}idempotencyKey", fault))
    if errors:
        raise invalid(errors)
    if len(event.payload) > max_payload:
        detail = f"{len(event.payload)} bytes, {max_payload} are allowed"
        raise Problem(413, f"The payload is too large: {detail}.", errors=[FieldError(f"{prefix}payload", detail)])


def _bad_line(body: bytes) -> Problem | None:
    for number, line in enumerate(BytesIO(body), 1):
        if line.strip():
            try:
                _one.decode(line)
            except msgspec.ValidationError:
                continue
            except (msgspec.DecodeError, RecursionError) as error:
                if _holds_more(line):
                    return Problem(400, f"Line {number} contains more than one event: send one event per line.")
                return Problem(400, f"Line {number} is not JSON: {error}.")
    return None


def _holds_more(line: bytes) -> bool:
    try:
        return len(msgspec.json.Decoder(msgspec.Raw).decode_lines(line)) > 1
    except (msgspec.DecodeError, RecursionError):
        return False


def _first_error(message: str) -> FieldError:
    """Return msgspec's error, whose text ends with the path of the field: "... - at `$[3].channel`"."""
    path = message.rpartition("`$")[2].rstrip("`")[:MAX_FIELD_LENGTH] if "`$" in message else ""
    return FieldError(f"events{path}" if path.startswith("[") else path.removeprefix("."), message[:MAX_MESSAGE_LENGTH])


def _explain(body: bytes, ndjson: bool) -> Problem:
    """Return a 422 that names every wrong field of the first wrong event. Raises decoder errors found on the way."""
    items: Iterable[bytes | msgspec.Raw]
    if ndjson:
        items = (line for line in BytesIO(body) if not line.isspace())
        batch = True
    else:
        items, batch = _items(body)
    for place, item in enumerate(items):
        prefix = f"events[{place}]." if batch else ""
        errors = _errors(bytes(item), prefix)
        if errors:
            return invalid(errors)
    return invalid([FieldError("events", "must be a list of events")])


def _items(body: bytes) -> tuple[Sequence[bytes | msgspec.Raw], bool]:
    try:
        return _raw_list.decode(body), True
    except msgspec.ValidationError:
        pass
    try:
        whole = _raw_object.decode(body)
    except msgspec.ValidationError:
        return [body], False
    if "events" in whole and not whole.keys() & set(_FIELDS):
        others = [FieldError(name, "unknown field; allowed: events") for name in whole if name != "events"]
        if others:
            raise invalid(others)
        try:
            return _raw_list.decode(whole["events"]), True
        except msgspec.ValidationError:
            return [], True
    return [body], False


def _errors(item: bytes, prefix: str) -> list[FieldError]:
    try:
        given = _raw_object.decode(item)
    except msgspec.ValidationError:
        return [FieldError(prefix.rstrip("."), "must be an object with channel and payload")]
    errors = [FieldError(f"{prefix}{name}", "required") for name in ("channel", "payload") if name not in given]
    for name, raw in given.items():
        if name not in _FIELDS:
            errors.append(FieldError(f"{prefix}{name}", f"unknown field; allowed: {', '.join(_FIELDS)}"))
        elif name != "payload":
            try:
                msgspec.json.decode(raw, type=str | None if name == "idempotencyKey" else str)
            except msgspec.ValidationError:
                errors.append(FieldError(f"{prefix}{name}", "must be a string"))
    return errors
