"""`python -m harness.export RUN --bits w4 [--format onnx]`: a run's network in integers, as one file.

RUN is a run's directory, or its id below --root. The file is written beside the run's files, or into --to; one of the
same name is replaced. Its accuracy is measured and compared with that of the record.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.cli.find import run_folder
from harness.core import outside
from harness.core.command import run_command
from harness.core.errors import UserError, unknown
from harness.records.run_directory import RunDirectory
from harness.training.deploy_entries import named_in

FORMATS = ("packed", "onnx")


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.export", description="A run's network in integers.")
    parser.add_argument("run", metavar="RUN", help="a run's directory, its id, or the beginning of it")
    parser.add_argument("--bits", required=True, metavar="w4", help="a point of its record: 4, w4a8, or its name")
    parser.add_argument(
        "--deploy", default="rtn", metavar="NAME", help="what that row has as its deploy method; default: rtn"
    )
    parser.add_argument("--format", default="packed", metavar="packed|onnx", help="default: packed")
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: the run's directory")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    options = parser.parse_args(arguments)
    if options.format not in FORMATS:
        raise unknown("format", options.format, FORMATS)
    if options.to is not None and options.to.suffix in (".onnx", ".safetensors") and not options.to.is_dir():
        raise UserError(f"--to {options.to}: name a folder; the file in it is named by run, point and deploy method")
    folder = run_folder(options.run, options.root)
    outside.look_near(folder)
    deploy = named_in([RunDirectory(folder).finished()["config"]], options.deploy)
    from harness.exporting.runs import export_run

    print("\n".join(export_run(folder, options.bits, deploy, options.format, options.to)))
    return 0


class _Callable(ModuleType):
    """`harness.export(model, ...)` also where this module was imported, which then has the function's name."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        from harness.exporting.api import export

        return export(*given, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run_command(main)
