"""The pages that browsers are shown: one to try the model on, one that lists the routes. They load nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

HERE = Path(__file__).parent
PAGE, REFERENCE = "page.html", "reference.html.jinja"


def add_pages(app: FastAPI) -> None:
    """Add them to an application whose routes are there."""
    page = (HERE / PAGE).read_text(encoding="utf-8")
    # Once: it is open to all, and takes milliseconds.
    reference_html = cache(lambda: reference_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return _html(page)

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return _html(reference_html())


def reference_page(schema: dict[str, Any]) -> str:
    """The routes of an OpenAPI schema, with what they take and give."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(REFERENCE).render(schema=schema, operations=list(_operations(schema)))


def content_policy(html: str) -> str:
    """Lets a page run its own script, use its own style and ask this server, and nothing else."""
    allowed = {kind: _digests(html, kind) or "'none'" for kind in ("script", "style")}
    rules = {"default-src": "'none'", "script-src": allowed["script"], "style-src": allowed["style"]}
    rules |= {"connect-src": "'self'", "img-src": "data:"}
    rules |= dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'")
    return "; ".join(f"{rule} {value}" for rule, value in rules.items())


def _digests(html: str, kind: str) -> str:
    parts = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _html(html: str) -> HTMLResponse:
    return HTMLResponse(html, headers={"Content-Security-Policy": content_policy(html)})


def _operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    named = schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            yield {
                "method": method.upper(),
                "path": path,
                "interface": ", ".join(operation["tags"]),
                "description": operation.get("description", ""),
                "fields": [] if body is None else list(_fields(_resolved(body, named), named)),
                "responses": [(status, answer["description"]) for status, answer in operation["responses"].items()],
            }


def _fields(model: dict[str, Any], named: dict[str, Any]) -> Iterator[tuple[str, bool, str, str]]:
    """Name, whether it is needed, what it is, and what is said of it."""
    needed = model.get("required", [])
    for name, field in sorted(model["properties"].items(), key=lambda entry: entry[0] not in needed):
        kind = json.dumps(_plain(field, named), ensure_ascii=False)
        yield name, name in needed, kind, field.get("description", "")


def _resolved(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    return named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _plain(schema: Any, named: dict[str, Any]) -> Any:
    """A schema in short: what a value may be, as in TypeScript but in JSON."""
    schema = _resolved(schema, named)
    if "anyOf" in schema:
        return [_plain(part, named) for part in schema["anyOf"]]
    if "enum" in schema or "const" in schema:
        return schema.get("enum", [schema.get("const")])
    if schema.get("type") == "array":
        return {"list of": _plain(schema.get("items", {}), named)}
    if "properties" in schema:
        return {name: _plain(part, named) for name, part in schema["properties"].items()}
    return schema.get("type", "anything")
