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
