"""`python -m harness.run CONFIG.yaml --dir DIR`: carry out one run by hand."""

import argparse
from functools import partial
from pathlib import Path

from harness.core import outside, yaml_file
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.records.run_directory import RunDirectory
from harness.records.schema import point, score_of
from harness.records.wandb_names import check_project
from harness.training.components import component, located
from harness.training.config import complete
from harness.training.run import RunContext, print_epoch, run


def main() -> None:
    """Carry out the command."""
    parser = argparse.ArgumentParser(prog="python -m harness.run", description="Carry out one run.")
    parser.add_argument(
        "config", type=Path, help="a YAML file of run settings (see sweeps/README.md), or a config.json"
    )
    parser.add_argument("--dir", type=Path, required=True, help="the run's directory; an unfinished run goes on")
    arguments = parser.parse_args()
    raw = yaml_file.read(arguments.config)
    outside.look_near(arguments.config.parent)
    raw = raw["config"] if set(raw) == {"run_id", "config"} else raw
    if "cells" in raw:
        raise UserError(f"{arguments.config}: has cells, so it is a sweep: python -m harness.launch carries it out")
    config = complete(located(raw, arguments.config.parent))
    from harness.data import prepare

    if config.runtime.wandb != "off":
        check_project(config.runtime.wandb_project)
    prepare(component("data set", config.data))
    outside.keep(RunDirectory(arguments.dir).components, config.model_dump(mode="json"))
    record = run(config, arguments.dir, RunContext(partial(print_epoch, config)))
    metric = config.task.metric
    for row in record["rows"]:
        score = f"{metric.name} {metric.shown(score_of(row), width=6)}"
        way = "" if row["deploy"] == "rtn" else f"  {row['deploy']}"
        print(f"{row['split']:>5} {point(row)!s:>5}  {score}  loss {row['loss']:.4f}{way}")
    print(f"record: {RunDirectory(arguments.dir).record}")


if __name__ == "__main__":
    run_command(main)
