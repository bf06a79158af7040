"""The pages: their own script and style alone, every route told, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from flipped_kd.serving.app import create_app
from flipped_kd.serving.page import content_policy, reference_page
from flipped_kd.serving.service import Service
from flipped_kd.serving.settings import Settings
from tests.serving.running import Running


@pytest.fixture(scope="module")
def app() -> FastAPI:
    def load() -> Any:
        raise AssertionError("nothing is loaded for the pages")

    return create_app(Service(load, Settings()))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_is_whole_in_itself(server: Running, path: str) -> None:
    response = server.client.get(path)
    html, policy = response.text, response.headers["content-security-policy"]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    # What is loaded: nothing. The empty picture keeps browsers from asking for one.
    assert [link for link in re.findall(r'(?:src|href)="([^"]*)"', html) if not link.startswith("/")] in (
        ["data:,"],
        [],
    )
    assert not re.findall(r"@import|url\(|https?://|<script [^>]*src|\son\w+=|style=", html)
    for kind in ("script", "style"):
        for part in re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert "connect-src 'self'" in policy and "unsafe" not in policy


def test_a_page_without_a_script_may_run_none() -> None:
    assert "script-src 'none'; style-src 'none'" in content_policy("<p>text</p>")


def test_the_routes_are_all_told(app: FastAPI) -> None:
    html = reference_page(app.openapi())
    told = set(re.findall(r"<code>((?:GET|POST) /[\w/]*)</code>", html))
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    assert told == {f"{method} {route.path}" for route in routes for method in route.methods} and len(told) == 12
    assert "<code>query</code> (needed)" in html and "`" not in html
    assert all(route.description for route in routes)


def test_the_description_names_every_error_that_a_route_gives(app: FastAPI) -> None:
    for path, methods in app.openapi()["paths"].items():
        if "post" in methods and path != "/corpus/reload":
            assert {"200", "400", "401", "413", "422", "429", "500", "503"} <= set(methods["post"]["responses"]), path
