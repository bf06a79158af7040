"""What went wrong with a push, in words that say what to do."""

from __future__ import annotations

from ..utils.hub_download import causes, is_network_failure, status_of
from ..utils.redaction import redact


class PublishError(RuntimeError):
    """Something that must not be published, or a push that did not succeed. Nothing local was lost.

    Examples:
        >>> from flipped_kd import push_folder
        >>> try:
        ...     push_folder(adapter, "somebody/matcher")
        ... except PublishError as error:
        ...     print(error)
        opening the repository 'somebody/matcher' failed (HfHubHTTPError: 403 Forbidden: ...). Nothing on this machine
        was changed. Log in with `hf auth login`, or give a token with write access to this repository.
    """


def failure_of(error: BaseException, what: str, token: str | None = None) -> PublishError:
    """A PublishError that says what to do about an error of the Hub's client, without any token."""
    status = next((found for each in causes(error) if (found := status_of(each)) is not None), None)
    if status in (401, 403):
        remedy = "Log in with `hf auth login`, or give a token with write access to this repository."
    elif status == 404:
        remedy = "Check the name of the repository, and that the token may see it."
    elif is_network_failure(error):
        remedy = "Repeat the command later: what has arrived is not sent again."
    else:
        remedy = "Mend what it names and repeat the command."
    said = " ".join(redact(f"{type(error).__name__}: {error}", token).split())
    return PublishError(f"{what} failed ({said}). Nothing on this machine was changed. {remedy}")
