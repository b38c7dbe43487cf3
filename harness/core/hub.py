"""The Hugging Face hub: whether it answers, and what names a folder in its place. Free of torch."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

#: Seconds to reach the hub at all.
_PROBE_TIMEOUT_S = 5.0


def folder_of(source: str) -> Path | None:
    """The folder that a source such as `./checkpoint` means; None where it is a name on the hub."""
    path = Path(source).expanduser()
    return path if source.startswith((".", "/", "~")) or path.is_dir() else None


def opened(source: str) -> tuple[str, AbstractContextManager[None]]:
    """What loads a source, a folder or a name on the hub, and the context for it: a folder needs no hub."""
    folder = folder_of(source)
    return (source, hub_offline_if_unreachable()) if folder is None else (str(folder), nullcontext())


@contextmanager
def hub_offline_if_unreachable() -> Iterator[None]:
    """Has the Hugging Face hub use its cache alone when it does not answer one short question.

    Left to itself it retries for 47 s without a network (measured, huggingface_hub 2.4).
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Whether a server answers at all, through the proxies of the environment."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=_PROBE_TIMEOUT_S).close()
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False
    return True
