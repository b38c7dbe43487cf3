"""Errors that a user can correct, and the exceptions that end a run early."""

import difflib
import re
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user wrote or left out. The message names field, value and what is legal, but no password."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(masked(str(message))))


class BrokenError(UserError):
    """The code of a component from outside this package fails."""


class MissingDataError(UserError):
    """Files of a data set are not there: on this machine, for a dry run."""


class Stopped(Exception):
    """A run was asked to stop; its checkpoint is written."""


class Pruned(Exception):
    """The pruner stopped this trial."""


def several(mistakes: Sequence[str], where: str) -> UserError:
    """One error of several mistakes, a line each: the first ten, and how many more there are."""
    shown = [f"  {each}".replace("\n", "\n    ") for each in mistakes[:10]]
    more = [f"  and {len(mistakes) - 10} more"] if len(mistakes) > 10 else []
    return UserError("\n".join([f"{where}: {len(mistakes)} mistakes", *shown, *more]))


def printable(text: object) -> str:
    r"""A text, such as a path, with bytes that are not UTF-8 as backslash escapes (`caf\xe9.png`): it can be stored."""
    try:
        return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, as in JSON
        return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def masked(text: str) -> str:
    """A text with the passwords of URLs replaced: `postgresql://user:***@host`."""
    text = re.sub(r"(://[^\s/:@]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd)=)[^\s&'\"]*", r"\1***", text)


#: What other programs call a setting.
_ELSEWHERE = {
    "lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "lambda": "strength", "reg": "strength",
    "n_trials": "trials", "num_epochs": "epochs", "bits": "target_bit", "scheduler": "schedule", "opt": "optimizer",
    "gpus_per_node": "gpus", "cpus_per_task": "cpus", "mem": "memory_gb", "timeout_min": "time",
}  # fmt: skip


def nearest(value: object, legal: Iterable[object]) -> str:
    """`"; did you mean 'x'?"`, or nothing when no legal name is near."""
    names = [str(name) for name in legal]
    if (meant := _ELSEWHERE.get(str(value).lower())) in names:
        return f"; did you mean {meant!r}?"
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    swapped = [name for name in close if sorted(name) == sorted(str(value))]  # lgo is log rather than low
    return f"; did you mean {(swapped or close)[0]!r}?" if close else ""


#: So many legal names are listed where all of them are to be had elsewhere.
_LISTED = 10


def unknown(
    kind: str,
    value: object,
    legal: Iterable[object],
    meant: str | None = None,
    what: str | None = None,
    elsewhere: str = "",
) -> UserError:
    """The error for a name that is none of `legal`.

    meant: which of them it is a usual name of; None: the nearest. what: says in a word or two what `meant` is.
    elsewhere: what has all of them (`results.names`), so that of many only the nearest are listed; empty: all are.
    """
    names = sorted(str(name) for name in legal)
    said = f" ({what})" if what else ""
    hint = f"; did you mean {meant!r}{said}?" if meant else nearest(value, names)
    listed = ", ".join(names)
    if elsewhere and len(names) > _LISTED:
        near = difflib.get_close_matches(str(value), names, n=_LISTED, cutoff=0.0)
        first = list(dict.fromkeys([*([meant] if meant else []), *near]))[:_LISTED]
        listed = f"{', '.join(first)}, and {len(names) - _LISTED} more; {elsewhere} has all"
    return UserError(f"unknown {kind} {value!r}{hint} (legal: {listed})")
