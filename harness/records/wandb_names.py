"""Names on W&B, by its rules. It refuses others, and the run with them."""

import hashlib

from harness.core.errors import UserError

#: The longest names in characters. W&B's client checks projects and tags, its server the others.
MOST_OF_TAG, MOST_OF_NAME = 64, 128
_NOT_IN_PROJECTS = "/\\#?%:"


def shortened(name: str, most: int) -> str:
    """A name of at most that many characters: a longer one ends with a hash of the whole."""
    if len(name) <= most:
        return name
    return f"{name[: most - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def tag_of(text: str) -> str:
    """A tag for a text, such as a sweep's name."""
    return shortened(text, MOST_OF_TAG)


def check_project(name: str, key: str = "runtime.wandb_project") -> None:
    """Refuse what is no name of a project. key: what the user wrote it as. Raises UserError."""
    found = sorted(set(_NOT_IN_PROJECTS) & set(name))
    if not found and 0 < len(name) <= MOST_OF_NAME:
        return
    near = "".join("-" if character in _NOT_IN_PROJECTS else character for character in name).strip("-")
    such = f"; did you mean {near!r}?" if found and near else ""
    raise UserError(
        f"{key}: {name!r} is no name of a project on W&B{such} "
        f"(legal: 1 to {MOST_OF_NAME} characters, none of them {' '.join(_NOT_IN_PROJECTS)})"
    )
