"""What the tests in test_cli_bad_input_*.py share."""

from typing import Any

from cli_sweep import SEARCH

Edits = dict[str, Any]


RATE = f"{SEARCH}/train.learning_rate"
