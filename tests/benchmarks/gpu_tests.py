"""A pytest plugin for gpu_run.py: only the tests that need a GPU, and of those only what has not passed yet.

    python -m pytest -p gpu_tests --results FILE [--named PATTERN]

Each result is a line of FILE at once, so that a run that is cut short is gone on with. What takes minutes comes last.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

#: Tests, or their parameters, for a GPU.
NAMED = r"cuda|gpu|never_waits_for_the_device"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Both options."""
    parser.addoption("--results", metavar="FILE", help="JSON lines, gone on with")
    parser.addoption("--named", metavar="PATTERN", default=NAMED, help="of the tests' names")


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far: of a test that ran twice the last counts; an incomplete line is skipped."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "test" in value:
            found[value["test"]] = value
    return list(found.values())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not for a GPU, and what has passed or been skipped."""
    over = {result["test"] for result in read(Path(config.getoption("--results"))) if result["outcome"] != "failed"}
    named = re.compile(config.getoption("--named"), re.IGNORECASE)
    chosen = [item for item in items if named.search(item.nodeid) and item.nodeid not in over]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted(chosen, key=lambda item: item.get_closest_marker("slow") is not None)  # stable


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a result down: of the test itself, or of a fixture that failed or skipped it."""
    if (report.when != "call" and report.passed) or "PYTEST_XDIST_WORKER" in os.environ:
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.failed:
        line["why"] = report.longreprtext[-2000:]
    path = Path(_Results.path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class _Results:
    path = ""


def pytest_configure(config: pytest.Config) -> None:
    """Reports come without the configuration."""
    _Results.path = config.getoption("--results")
