"""Keeping the Hub's tokens out of messages, logs, reports and cards.

It imports nothing heavy: the message of a usage error passes through it.
"""

from __future__ import annotations

import os
import re
import sys

HIDDEN = "***"
# Shorter than any real one: in a message, rather too much is hidden than too little.
LIKE_A_TOKEN = re.compile(r"(?:hf|api_org)_\w{16,}")
# A real one, in a file: a push is refused for it, so a word that only begins like one must not match.
TOKEN_BYTES = re.compile(rb"(?:hf|api_org)_[A-Za-z0-9]{30,}")
# The token that clients of `flipped-kd serve` send.
SERVER_TOKEN = "FLIPPED_KD_TOKEN"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", SERVER_TOKEN)
# What an HTTP header can carry of one.
SENDABLE = re.compile(r"[!-~]+")
# Long enough not to stand in a text by chance.
MIN_TOKEN_LENGTH = 8
# Those that were read from files.
_told: set[str] = set()


def hide(secret: str) -> None:
    """From now on a secret is one of those that are never shown."""
    _told.add(secret)


def known_tokens(token: str | bool | None = None) -> list[str]:
    """The token given and those of this machine, the longest first.

    The stored one of `hf auth login` is among them where huggingface_hub has been imported; else nothing can have read
    it.
    """
    secrets = {
        token if isinstance(token, str) else "",
        *_told,
        *(os.environ.get(name, "") for name in TOKEN_VARIABLES),
    }
    hub = sys.modules.get("huggingface_hub.utils")
    if hub is not None:
        secrets.add(hub.get_token() or "")
    found = {secret.strip() for secret in secrets}
    return sorted((secret for secret in found if len(secret) >= MIN_TOKEN_LENGTH), key=len, reverse=True)


def redact(text: str, token: str | bool | None = None) -> str:
    """The text with every known token, and whatever looks like one, hidden."""
    for secret in known_tokens(token):
        text = text.replace(secret, HIDDEN)
    return LIKE_A_TOKEN.sub(HIDDEN, text)
