"""A command in this process, as `python -m` carries it out: without the seconds that a new process imports for.

For what a command says and how it exits. What depends on the process itself (signals, imports, workers) needs a real
one; so does one call of each command.
"""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch


def run_here(
    module: str, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """What `python -m module arguments` ends with, in a working directory and with further variables."""
    given = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", [module, *given]),
        patch.dict(os.environ, env or {}),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = _status(module)
    return subprocess.CompletedProcess([module, *given], status, out.getvalue(), err.getvalue())


def _status(module: str) -> int:
    """Run the module's `__main__` part; its exit status."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'harness.* found in sys.modules", RuntimeWarning)  # runpy's, of course
            runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return 0
