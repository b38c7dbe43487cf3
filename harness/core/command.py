"""How a command line ends: one line for an error of the user, and the exit status. Types of options."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from harness.core.errors import UserError

#: Errors of the disk whose message is enough for a user: full, over quota, read-only, not allowed.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def positive(text: str) -> int:
    """A whole number of at least 1, of an option."""
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main`, then exit: 2 with one line for a UserError, 130 on Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths need not be UTF-8, as on stderr
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        print(f"error: {error}; correct that and try again: what is finished stays", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
