"""The version of this code: git's commit, changes since, and a hash of the package's files. Without torch.

A sweep's code.json holds the version that launched it, and the later changes, with their reasons.
"""

import hashlib
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.records.files import read_json, write_json

_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_version() -> dict[str, Any]:
    """This code, as it was when first asked in this process: later edits do not reach what is imported already.

    `source` hashes the package's files, with or without git. `sha`, `dirty` and `diff_hash` (of the change,
    untracked files included) are missing without git.
    """
    return {"source": _hash_of_files(), **_git_version()}


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions are different code. A commit that leaves the package alone makes no difference."""
    return bool(one and other) and one["source"] != other["source"]


def named(version: Mapping[str, Any]) -> str:
    """A version as text: `e5b8302 (changed: 4f5e6d7c8b9a)`; the hash of its files without git."""
    if "sha" not in version:
        return f"files {version['source']}"
    return version["sha"][:7] + (f" (changed: {version['diff_hash']})" if version["dirty"] else "")


def note_launch(path: Path) -> None:
    """Write this version to a sweep's code.json, unless there is one."""
    if read_json(path) is None:
        write_json(path, {"code": code_version(), "changes": []})


def check_launched(path: Path, refuse: bool) -> str | None:
    """Compare this code with what launched a sweep (its code.json): returns that version, and prints it, if it differs.

    Raises UserError instead where a difference is refused.
    """
    launched = _launched(path)
    if not differs(code_version(), launched):
        return None
    if refuse:
        advice = "launch from that code, or give the sweep another name"
        raise UserError(f"{_difference(launched)} (changed_code: refuse); {advice}")
    print(f"{_difference(launched)}: runs from now on say so in their records", file=sys.stderr, flush=True)
    return named(launched)


def note_change(path: Path, why: str | None) -> None:
    """Add to code.json what changed since the launch, and why. Raises UserError for a change without a reason."""
    launched = _launched(path)
    if not differs(code_version(), launched):
        return
    if why is None:
        raise UserError(
            f'{_difference(launched)}: say what changed with --changed-code "WHY" (it is kept in {path.name}), or go '
            "back to that code"
        )
    change = {"from": launched, "to": code_version(), "why": why, "when": time.time()}
    write_json(path, {"code": code_version(), "changes": [*read_json(path)["changes"], change]})


def _launched(path: Path) -> Mapping[str, Any]:
    return (read_json(path) or {}).get("code", {})


def _difference(launched: Mapping[str, Any]) -> str:
    return f"the code is {named(code_version())}; the sweep was launched with {named(launched)}"


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
