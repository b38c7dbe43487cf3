"""Shared by all tests: few threads, no network, no account."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # `analysis` is no installed package

os.environ["WANDB_MODE"] = "offline"
# Of the processes that tests start, too: threads that share a core with other tests wait for each other by spinning,
# and seconds become minutes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("WANDB_API_KEY", None)
# Compiled modules are kept, whatever the shell says: each worker and each command would compile all of them again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def _one_thread_a_test_process() -> None:
    """Before each test: one that launches a sweep in this process leaves it all threads, which wait by spinning."""
    import torch

    torch.set_num_threads(1)
