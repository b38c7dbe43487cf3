"""Shared by all tests: few threads, no network, no account."""

import os

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True)
def _one_thread_a_test_process() -> None:
    """Before each test: one that launches a sweep in this process leaves it all threads, which wait by spinning."""
    import torch

    torch.set_num_threads(1)
