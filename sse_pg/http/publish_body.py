"""The bodies of a publish: one event, a list, ``{"events": [...]}``, or NDJSON. Payloads stay the text they are."""

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
#: Bytes of a JSON body whose fields are gone through one by one: as pieces, it can take 40 times its size.
EXPLAINED = 1 << 20
#: Characters of what is said of a larger one: the name of a field can be as long as the body.
MAX_PLACE, MAX_MESSAGE = 100, 300
_FIELDS = ("channel", "eventType", "payload", "idempotencyKey")


def drafts(body: bytes, *, ndjson: bool, max_payload: int, max_batch: int) -> tuple[list[Draft], bool]:
    """Read a body; return its drafts and whether it was a batch.

    Raises the 400, 413 or 422 that says what is wrong and, in a batch, with which item.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise bodies.malformed(error) from None
    try:
        try:
            events, batch = _decode(body, ndjson)
        except msgspec.ValidationError as error:
            if len(body) > EXPLAINED and not ndjson:
                raise invalid([_first_fault(str(error))]) from None
            raise _explain(body, ndjson) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise (_bad_line(body) if ndjson else None) or bodies.malformed(error) from None
    if batch and not events:
        raise invalid([FieldError("events", "at least one event is needed")])
    if len(events) > max_batch:
        raise Problem(413, f"At most {max_batch} events in one request; this one has {len(events)}.")
    made = []
    good: set[tuple[str, str]] = set()  # a batch has few channels and types
    for place, event in enumerate(events):
        names = (event.channel, event.event_type)
        if names not in good or event.idempotency_key is not None or len(event.payload) > max_payload:
            _check(event, f"events[{place}]." if batch else "", max_payload)
            good.add(names)
        made.append(Draft(event.channel, event.event_type, bytes(event.payload).decode(), event.idempotency_key))
    return made, batch


def _decode(body: bytes, ndjson: bool) -> tuple[Sequence[EventBody], bool]:
    if ndjson:
        # Not decode_lines(): it takes several events on a line, and one on several.
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
        detail = f"at most {max_payload} bytes; this one has {len(event.payload)}"
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
                    return Problem(400, f"Line {number} holds more than one event: send one event a line.")
                return Problem(400, f"Line {number} is not JSON: {error}.")
    return None


def _holds_more(line: bytes) -> bool:
    try:
        return len(msgspec.json.Decoder(msgspec.Raw).decode_lines(line)) > 1
    except (msgspec.DecodeError, RecursionError):
        return False


def _first_fault(message: str) -> FieldError:
    """Return what msgspec says of the first field that is wrong; it ends with the place: "... - at `$[3].channel`"."""
    path = message.rpartition("`$")[2].rstrip("`")[:MAX_PLACE] if "`$" in message else ""
    return FieldError(f"events{path}" if path.startswith("[") else path.removeprefix("."), message[:MAX_MESSAGE])


def _explain(body: bytes, ndjson: bool) -> Problem:
    """Name every field that is wrong in the first event that is; raises what a decoder raises beyond that event."""
    items: Iterable[bytes | msgspec.Raw]
    if ndjson:
        items = (line for line in BytesIO(body) if not line.isspace())
        batch = True
    else:
        items, batch = _items(body)
    for place, item in enumerate(items):
        prefix = f"events[{place}]." if batch else ""
        errors = _faults(bytes(item), prefix)
        if errors:
            return invalid(errors)
    return invalid([FieldError("events", "a list of events is needed")])


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
        others = [FieldError(name, "there is no such field; there is events") for name in whole if name != "events"]
        if others:
            raise invalid(others)
        try:
            return _raw_list.decode(whole["events"]), True
        except msgspec.ValidationError:
            return [], True
    return [body], False


def _faults(item: bytes, prefix: str) -> list[FieldError]:
    try:
        given = _raw_object.decode(item)
    except msgspec.ValidationError:
        return [FieldError(prefix.rstrip("."), "an event is an object with channel and payload")]
    errors = [
        FieldError(f"{prefix}{name}", "this field is needed") for name in ("channel", "payload") if name not in given
    ]
    for name, raw in given.items():
        if name not in _FIELDS:
            errors.append(FieldError(f"{prefix}{name}", f"there is no such field; there are {', '.join(_FIELDS)}"))
        elif name != "payload":
            try:
                msgspec.json.decode(raw, type=str | None if name == "idempotencyKey" else str)
            except msgspec.ValidationError:
                errors.append(FieldError(f"{prefix}{name}", "a string is needed"))
    return errors
