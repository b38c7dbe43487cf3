"""Shared by all tests: few threads, no network, no account."""

import os

import pytest

os.environ["WANDB_MODE"] = "offline"
# Of the processes that tests start, too: threads that share a core with other tests wait for each other by spinning,
# and seconds become minutes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True)
def _one_thread_a_test_process() -> None:
    """Before each test: one that launches a sweep in this process leaves it all threads, which wait by spinning."""
    import torch

    torch.set_num_threads(1)
