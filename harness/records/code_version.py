"""Which code this is: git's commit, what was changed since, and a hash of the package's files. Without torch."""

import hashlib
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_version() -> dict[str, Any]:
    """This code, as it was when first asked in this process: later edits do not reach what is imported already.

    `source` hashes the package's files, whatever git says of them. `sha`, `dirty` and `diff_hash` (of the change,
    untracked files included) are missing without git.
    """
    return {"source": _hash_of_files(), **_git_version()}


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions are different code. A commit that leaves the package alone makes no difference."""
    return bool(one and other) and one["source"] != other["source"]


def named(version: Mapping[str, Any]) -> str:
    """`e5b8302 (changed: 4f5e6d7c8b9a)`: a version for a reader; the hash of its files without git."""
    if "sha" not in version:
        return f"files {version['source']}"
    return version["sha"][:7] + (f" (changed: {version['diff_hash']})" if version["dirty"] else "")


def _hash_of_files() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for end in ("py", "c", "h") for path in _PACKAGE.rglob(f"*.{end}")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _git_version() -> dict[str, Any]:
    try:
        sha = _git("rev-parse", "HEAD")
        diff = _git("diff", "HEAD", "--", ".")
        untracked = _git("ls-files", "--others", "--exclude-standard", "--", ".")
        contents = "".join((_PACKAGE / name).read_text(errors="replace") for name in untracked.splitlines())
    except (OSError, subprocess.CalledProcessError):
        return {}
    changed = diff + untracked + contents
    return {
        "sha": sha,
        "dirty": bool(changed),
        "diff_hash": hashlib.sha256(changed.encode()).hexdigest()[:12] if changed else None,
    }


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=True)
    return answer.stdout.strip()
