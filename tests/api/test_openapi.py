"""The description of the HTTP interface: valid, complete, and true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from support import openapi
from support.client import Client

from sse_pg.app import create_app
from sse_pg.config import Settings
from sse_pg.version import VERSION

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in openapi.document()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_it_is_openapi() -> None:
    OpenAPIV31SpecValidator(openapi.document()).validate()
    assert openapi.document()["openapi"].startswith("3.1.")


def test_its_version_is_the_package_s() -> None:
    assert openapi.document()["info"]["version"] == VERSION


def test_it_names_every_route_and_no_other() -> None:
    app = create_app(Settings(database_url="postgresql://nowhere"))
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert {(path, method) for path, method, _ in _operations()} == routes


def test_every_example_follows_its_schema() -> None:
    checked = 0
    for path, node in _media("#", openapi.document()):
        examples = [e["value"] for e in node.get("examples", {}).values()]
        examples += [node["example"]] if "example" in node else []
        for example in examples:
            faults = [error.message for error in openapi._validator(f"{path}/schema").iter_errors(example)]
            assert not faults, f"{path}: {faults}"
            checked += 1
    assert checked > 30


def _media(path: str, node: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every object with a schema and an example: media types and parameters."""
    found = []
    if isinstance(node, dict):
        if "schema" in node and ("example" in node or "examples" in node):
            found.append((path, node))
        for name, value in node.items():
            if name not in ("example", "examples"):
                found += _media(f"{path}/{openapi._escape(name)}", value)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            found += _media(f"{path}/{place}", value)
    return found


def test_errors_are_problem_documents() -> None:
    for path, method, operation in _operations():
        for status in operation["responses"]:
            if status >= "4":
                response, _ = openapi._resolve(f"#/paths/{openapi._escape(path)}/{method}", status, "")
                assert list(response["content"]) == [openapi.PROBLEM]
                assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))


def test_every_operation_is_named_once() -> None:
    names = [operation["operationId"] for _, _, operation in _operations()]
    assert len(set(names)) == len(names)


def test_every_schema_is_used() -> None:
    text = json.dumps(openapi.document())
    for kind, parts in openapi.document()["components"].items():
        for name in parts:
            named = f'"{name}": []' if kind == "securitySchemes" else f'"#/components/{kind}/{name}"'
            assert named in text, name
    for schema in openapi.document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_it_is_served(client: Client) -> None:
    status, body, response = await client.request("GET", "/openapi.json")
    assert (status, response.content_type) == (200, "application/json")
    assert body == openapi.document()


@pytest.mark.parametrize(
    ("method", "path", "status", "content_type", "body"),
    [
        ("GET", "/healthz", 200, "application/json", {"status": "ok", "more": 1}),
        ("GET", "/healthz", 200, "text/plain", {"status": "ok"}),
        (
            "GET",
            "/healthz",
            500,
            openapi.PROBLEM,
            {"type": "about:blank", "title": "", "status": 500, "detail": ""},
        ),
        ("GET", "/nowhere", 200, "application/json", {}),
        ("PUT", "/healthz", 404, openapi.PROBLEM, {"type": "a", "title": "", "status": 404, "detail": ""}),
        ("GET", "/nowhere", 404, openapi.PROBLEM, {"type": "a", "title": "", "status": 405, "detail": ""}),
        ("GET", "/nowhere", 404, openapi.PROBLEM, {"title": "", "status": 404}),
        ("POST", "/api/events/publish", 201, "application/json", {"id": "1"}),
        ("HEAD", "/api/events/stream", 200, "text/event-stream", None),
    ],
)
def test_the_check_finds_what_is_not_described(
    method: str, path: str, status: int, content_type: str, body: Any
) -> None:
    with pytest.raises(AssertionError):
        openapi.check(method, path, status, content_type, body)
