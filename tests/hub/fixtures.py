"""pytest fixtures of the loopback Hub; tests/conftest.py loads this file as a plugin (`pytest_plugins`).

`hub` is a running server. Two ways to use it, both with the real client:

- in a subprocess: `subprocess.run(..., env=hub.environment(home, token))`;
- in the test process, which conftest.py has put offline: ask for the fixture `online` too. huggingface_hub reads its
  module `constants` at each call, so the settings that it took from the environment are replaced there. `connected`
  does the same for a part of a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.hub.server import LoopbackHub

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A running loopback Hub without repositories. A failure of the server itself fails the test."""
    with LoopbackHub(tmp_path_factory.mktemp("loopback") / "hub") as server:
        yield server
    assert not server.errors, "\n".join(server.errors)


@pytest.fixture
def online(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HfApi]:
    """This process, logged in at the loopback Hub."""
    with connected(hub, tmp_path_factory.mktemp("hf_home"), hub.token) as api:
        yield api


@contextmanager
def connected(hub: LoopbackHub, home: Path, token: str | None = None) -> Iterator[HfApi]:
    """Let huggingface_hub of this process ask the loopback Hub, with a cache of its own and without waiting.

    Everything that goes through huggingface_hub is at the loopback Hub meanwhile: HfApi, hf_hub_download,
    snapshot_download, and from_pretrained and push_to_hub of transformers, PEFT and sentence-transformers.
    """
    import huggingface_hub
    import transformers.utils.hub
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    settings: dict[str, object] = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "agent_harnesses.json"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN", raising=False)
        for name, value in hub.variables(home, token).items():
            patch.setenv(name, value)
        for name, setting in settings.items():
            patch.setattr(constants, name, setting)
        # The instance behind huggingface_hub.create_repo, upload_folder and the other functions.
        patch.setattr(hf_api.api, "endpoint", hub.endpoint)
        # The one that transformers keeps, for Trainer.push_to_hub and save_pretrained(push_to_hub=True).
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        # The client waits seconds before it asks again: not here.
        for module in (_http, file_download):
            clock = SimpleNamespace(**{**vars(module.time), "sleep": lambda seconds: None})
            patch.setattr(module, "time", clock)
        _http.close_session()  # it keeps the proxies of the environment, and connections
        yield huggingface_hub.HfApi()
        _http.close_session()
