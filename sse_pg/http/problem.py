"""JSON responses, and errors over HTTP as RFC 9457 problem documents."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from aiohttp import ClientConnectionResetError, web
from aiohttp.typedefs import Handler

from sse_pg.errors import (
    BusUnavailable,
    ClientGone,
    CursorError,
    EventRefused,
    KeyHeld,
    KeyReused,
    KeysUnavailable,
    OutcomeUnknown,
    PayloadTooLarge,
    RuleFailed,
    TooManySubscriptions,
)

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
#: Retry-After of a 503.
RETRY_AFTER_S = 2
#: Where an application counts refused requests: by Problem.limit, or by the status 401 or 403.
REFUSED_REQUESTS = web.AppKey("REFUSED_REQUESTS", Counter[str])
#: Maximum number of wrong fields that a response names: a body of 16 MiB has room for a million.
MAX_NAMED_ERRORS = 100


def json_response(
    body: object,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """Return a body as JSON. The line end after it is for terminals."""
    return web.Response(
        status=status, body=msgspec.json.encode(body) + b"\n", content_type=content_type, headers=headers
    )


class FieldError(msgspec.Struct, frozen=True):
    """A field that is wrong, and what is allowed."""

    field: str
    detail: str


class Problem(Exception):
    """An error that becomes a problem document."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        kind: str = "about:blank",
        title: str | None = None,
        headers: dict[str, str] | None = None,
        limit: str = "",
    ) -> None:
        super().__init__(detail)
        self.limit = limit
        """The name under which it is counted; empty if it is not."""
        self.status = status
        self.detail = detail
        self.errors = errors
        self.kind = kind
        self.title = title or HTTPStatus(status).phrase
        self.headers = headers or {}

    def response(self) -> web.Response:
        """Return the problem document."""
        body: dict[str, object] = {
            "type": self.kind,
            "title": self.title,
            "status": self.status,
            "detail": _encodable(self.detail),
        }
        if self.errors:
            body["errors"] = [FieldError(_encodable(error.field), _encodable(error.detail)) for error in self.errors]
        response = json_response(
            body, self.status, headers={"Cache-Control": "no-store", **self.headers}, content_type=CONTENT_TYPE
        )
        if self.headers.get("Connection") == "close":
            response.force_close()  # the header alone leaves closing to the client
        return response


def _encodable(text: str) -> str:
    """Replace what is not valid Unicode: a header that a text quotes may contain bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()


def invalid(errors: Sequence[FieldError]) -> Problem:
    """Return a 422 that names the fields."""
    named = [f"{error.field or 'body'}: {error.detail}" for error in errors[:5]]
    return Problem(422, "; ".join(named), errors=errors[:MAX_NAMED_ERRORS])


def unavailable(detail: str, *, limit: str = "", kind: str = "about:blank", title: str | None = None) -> Problem:
    """Return a 503 that asks the client to retry."""
    return Problem(503, detail, kind=kind, title=title, headers={"Retry-After": str(RETRY_AFTER_S)}, limit=limit)


def internal_error(status: int = 500) -> Problem:
    """Return the problem of an error that only the log explains."""
    return Problem(status, "Internal error; the server's log has the details.")


def _problem_of(error: Exception, *, publishes: bool) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, OutcomeUnknown):
        return unavailable(
            "The connection to the database was lost during the commit: the event may or may not have been published. "
            "To be sure, publish again with the same idempotencyKey.",
            limit="outcome_unknown",
            kind="urn:sse-pg:outcome-unknown",
            title="Outcome unknown",
        )
    if isinstance(error, KeyHeld):
        return unavailable(
            "Another transaction that is still open holds the idempotency key, or a lock on the table; nothing was "
            "published. Repeat the request with the same key.",
            limit="key_held",
        )
    if isinstance(error, BusUnavailable):
        # Of other writes that is not known: a connection can be lost during their commit.
        outcome = "; nothing was published" if publishes else ""
        return unavailable(f"The database is unavailable{outcome}. ({error})", limit="database")
    if isinstance(error, EventRefused):
        return _refused(error)
    if isinstance(error, TooManySubscriptions):
        return invalid([FieldError("userId", str(error))])
    if isinstance(error, KeysUnavailable):
        return unavailable("Tokens cannot be checked at the moment: no keys are available.", limit="keys")
    if isinstance(error, RuleFailed):
        if error.late:
            return unavailable("The access rule took too long, so nothing is allowed.", limit="rule")
        return Problem(500, "The access rule failed, so nothing is allowed; the server's log has the details.")
    if isinstance(error, CursorError):
        return Problem(422, str(error))
    return internal_error()


def _refused(error: EventRefused) -> Problem:
    field = "payload" if not isinstance(error, KeyReused) else "idempotencyKey"
    if error.index is not None:
        field = f"events[{error.index}].{field}"
    status = 409 if isinstance(error, KeyReused) else 413 if isinstance(error, PayloadTooLarge) else 422
    return Problem(status, str(error), errors=[FieldError(field, str(error))])


class _NoResponse(web.StreamResponse):
    """Ends the connection of a request whose client has left, in any aiohttp runner."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send nothing. aiohttp takes this error for a client that has left, and closes the connection."""
        raise ConnectionResetError


_DETAILS = {
    404: "No resource at {path}.",
    405: "{method} is not allowed here, only {allow}.",
    417: "The only expectation that is supported is 100-continue.",
}


def http_problem(error: web.HTTPException, request: web.BaseRequest) -> Problem:
    """Return the problem for an error of aiohttp's own."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    detail = _DETAILS.get(error.status, error.reason).format(
        path=request.path,
        method=request.method,
        allow=headers.get("Allow", ""),
    )
    return Problem(error.status, detail, headers=headers)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = http_problem(error, request)
    except (ClientGone, ClientConnectionResetError):  # the latter from a stream's head
        return _NoResponse()
    except web.RequestPayloadError:
        problem = Problem(400, "The body is malformed: its chunks or its Content-Encoding cannot be decoded.")
        problem.headers["Connection"] = "close"
    except Exception as error:
        problem = _problem_of(error, publishes=request.path.endswith("/publish"))
        if problem.status == 500 and not isinstance(error, RuleFailed):  # the failure of a rule is logged already
            log.exception("%s %r failed", request.method, request.path)
    if problem.status == 413:
        # The rest of the body is not read, so the connection cannot serve another request.
        problem.headers.setdefault("Connection", "close")
    _count(request, problem)
    return problem.response()


def _count(request: web.Request, problem: Problem) -> None:
    reason = problem.limit or (str(problem.status) if problem.status in (401, 403) else "")
    counts = request.config_dict.get(REFUSED_REQUESTS)
    if reason and counts is not None:
        counts[reason] += 1
