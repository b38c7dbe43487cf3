"""Which of the checks' models each method is tested on."""

from collections.abc import Mapping
from typing import Any

import pytest

from harness.conformance.common import fitting


def pairs(methods: list[str], models: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Every method with every model that it fits; all but the first are marked slow."""
    return [
        pytest.param(method, model, marks=pytest.mark.slow if place else ())
        for method in methods
        for place, model in enumerate(fitting(method, models))
    ]


def each_once(methods: list[str], models: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Every method with the first model that it fits, and QAT with every other: where neither acts on the other."""
    return [
        *((method, fitting(method, models)[0]) for method in methods),
        *(("ste", model) for model in list(models)[1:]),
    ]
