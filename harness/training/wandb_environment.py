"""What of WANDB_* in the environment counts for the runs of a sweep.

An agent, another run, a notebook or a login script may have left any of W&B's variables: WANDB_SWEEP_ID gives a run
another id, WANDB_SERVICE names a process that has ended, WANDB_TAGS or WANDB_MODE may hold what W&B refuses.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from netrc import NetrcParseError, netrc

#: Where W&B keeps its files, and whose the runs are.
_ALWAYS = ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR", "ENTITY", "ERROR_REPORTING")
#: What else its process needs to reach the server. Left out offline, where a bad value would cost the run its copy.
_ONLINE = (
    *("API_KEY", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "BASE_URL", "APP_URL", "INSECURE_DISABLE_SSL"),
    *("HTTP_PROXY", "HTTPS_PROXY", "X_EXTRA_HTTP_HEADERS", "_EXTRA_HTTP_HEADERS", "HTTP_TIMEOUT"),
    *("SERVICE_TRANSPORT", "X_SERVICE_WAIT", "_SERVICE_WAIT"),
)
#: Read by `wandb_mode`, not by W&B.
_MODE = "MODE"

_said = False


def _named(*names: str) -> set[str]:
    return {f"WANDB_{name}" for name in names}


def ignored(environment: Mapping[str, str]) -> list[str]:
    """The variables of W&B that count for nothing here, sorted."""
    counts = _named(*_ALWAYS, *_ONLINE, _MODE)
    return sorted(name for name in environment if name.startswith("WANDB_") and name not in counts)


def say_ignored() -> None:
    """Say once in this process which variables are ignored."""
    global _said
    names = ignored(os.environ)
    if names and not _said:
        print(f"W&B: ignored in the environment, since the sweep file says it: {', '.join(names)}", file=sys.stderr)
    _said = True


@contextmanager
def environment_of_runs(online: bool) -> Iterator[None]:
    """Let W&B start with the variables that count, and no other of its own."""
    counts = _named(*_ALWAYS, *(_ONLINE if online else ()))
    removed = {name: os.environ.pop(name) for name in list(os.environ) if name[:6] == "WANDB_" and name not in counts}
    try:
        yield
    finally:
        for name, value in removed.items():
            os.environ.setdefault(name, value)  # W&B notes its process in WANDB_SERVICE, which is then the right one


def malformed_url(environment: Mapping[str, str]) -> str | None:
    """WANDB_BASE_URL where it is no address at all; None where it is one, or is not set."""
    url = environment.get("WANDB_BASE_URL", "")
    return url if url and not re.fullmatch(r"https?://[^\s/:?#]+(:\d+)?(/\S*)?", url) else None


def has_key() -> bool:
    """Whether a key for W&B is in the environment or in .netrc."""
    return bool(os.environ.get("WANDB_API_KEY", "").strip()) or _netrc_has_key()


def _netrc_has_key() -> bool:
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except UnicodeDecodeError:  # W&B cannot read it either
        where = os.environ.get("NETRC") or "~/.netrc"
        print(f"W&B: {where} is not UTF-8, so no key is read from it; WANDB_API_KEY is", file=sys.stderr)
        return False
    except (OSError, NetrcParseError):
        return False
