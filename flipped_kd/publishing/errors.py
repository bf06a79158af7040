"""What went wrong with a push, in words that say what to do."""

from __future__ import annotations

from ..utils.redaction import redact


class PublishError(RuntimeError):
    """Something that must not be published, or a push that did not succeed. Nothing local was lost."""


def failure_of(error: BaseException, what: str, token: str | None = None) -> PublishError:
    """A PublishError that says what to do about an error of the Hub's client, without any token."""
    status, transport = None, False
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        status = status or getattr(getattr(cause, "response", None), "status_code", None)
        transport = transport or isinstance(cause, ConnectionError | TimeoutError) or _is_transport(cause)
        cause = cause.__cause__ or cause.__context__
    if status in (401, 403):
        remedy = "Log in with `hf auth login`, or give a token with write access to this repository."
    elif status == 404:
        remedy = "Check the name of the repository, and that the token may see it."
    elif transport or (status is not None and (status >= 500 or status in (408, 429))):
        remedy = "Repeat the command later: what has arrived is not sent again."
    else:
        remedy = "Mend what it names and repeat the command."
    said = " ".join(redact(f"{type(error).__name__}: {error}", token).split())
    return PublishError(f"{what} failed ({said}). Nothing on this machine was changed. {remedy}")


def _is_transport(error: BaseException) -> bool:
    """An error of the connection in httpx, which huggingface_hub brings along."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
