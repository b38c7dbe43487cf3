"""Shared by all tests: few threads, no network, no account."""

import os

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_test_process() -> None:
    import torch

    torch.set_num_threads(1)
