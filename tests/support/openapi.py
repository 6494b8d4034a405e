"""Holds responses against sse_pg/static/openapi.json: nothing goes out that the description does not name."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import sse_pg

PROBLEM = "application/problem+json"
_URI = "urn:openapi"
_NOWHERE = "#/components/schemas/Problem"


@cache
def document() -> dict[str, Any]:
    """The description as it is shipped."""
    return json.loads((Path(sse_pg.__file__).parent / "static" / "openapi.json").read_text("utf-8"))


def check(method: str, path: str, status: int, content_type: str, body: Any) -> None:
    """Raise AssertionError where the description does not allow this response. A stream's body is not looked at."""
    where = f"{method} {path} {status} {content_type}"
    path = _template(path)
    operation = _operation(method, path)
    if operation is None:
        known = path in document()["paths"]
        assert status == (405 if known else 404), f"{where}: nothing is described there"
        assert content_type == PROBLEM, where
        pointer = _NOWHERE
    else:
        response, pointer = _resolve(operation, str(status), where)
        assert content_type in response["content"], f"{where}: described are {', '.join(response['content'])}"
        pointer += f"/content/{_escape(content_type)}/schema"
    if content_type == PROBLEM and method != "HEAD":
        assert body["status"] == status, where
    if content_type != "text/event-stream" and method != "HEAD":
        faults = [f"{'/'.join(map(str, e.path))}: {e.message}" for e in _validator(pointer).iter_errors(body)]
        assert not faults, f"{where}: {'; '.join(faults)}"


def _template(path: str) -> str:
    """Return a path as it is described, with names in braces for its variable parts."""
    for each in document()["paths"]:
        if "{" in each and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each)), path):
            return str(each)
    return path


def _operation(method: str, path: str) -> str | None:
    """Return the pointer to an operation. HEAD is GET without its body, except on the stream."""
    name = method.lower()
    if name == "head" and path != "/api/events/stream":
        name = "get"
    if name in document()["paths"].get(path, {}):
        return f"#/paths/{_escape(path)}/{name}"
    return None


def _resolve(operation: str, status: str, where: str) -> tuple[dict[str, Any], str]:
    responses = _at(operation)["responses"]
    assert status in responses, f"{where}: described are {', '.join(responses)}"
    pointer = responses[status].get("$ref", f"{operation}/responses/{status}")
    return _at(pointer), pointer


@cache
def _validator(pointer: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": _URI + pointer},
        registry=_registry(),
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


@cache
def _registry() -> Registry:
    """The description with every object closed: here, though not for clients, an unknown field is a fault."""
    return Registry().with_resource(
        _URI, Resource(contents=_closed(copy.deepcopy(document())), specification=DRAFT202012)
    )


def _closed(node: Any) -> Any:
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        for value in node.values():
            _closed(value)
    elif isinstance(node, list):
        for value in node:
            _closed(value)
    return node


def _at(pointer: str) -> dict[str, Any]:
    node: Any = document()
    for part in pointer.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
