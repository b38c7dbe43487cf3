"""Steps a second of bare loops of the quickstart's network: one alone, and two at once, which share memory and clock.

What two workers can bring at most on these cores: the loop has images in memory, fused Adam and nothing else.
"""

import multiprocessing
import os
import time
from typing import Any

MODEL, BATCH, SHAPE = {"name": "mlp5", "width": 256}, 64, (1, 8, 8)
#: Seconds after which a loop is taken to hang.
LIMIT_S = 120


def count(threads: int, seconds: float, start: Any, answers: Any) -> None:
    """Put the steps a second of one loop, which begins with the others, into a queue."""
    import torch
    from bare_loop import BareLoop

    torch.set_num_threads(threads)
    loop = BareLoop(MODEL, BATCH, "fp32", shape=SHAPE)
    for _ in range(20):
        loop()
    start.wait(LIMIT_S)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        loop()
        steps += 1
    answers.put(steps / (time.perf_counter() - begun))


def rate(loops: int, threads: int, seconds: float) -> float:
    """Steps a second of so many loops at once, together. Raises queue.Empty if one dies."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(loops), context.Queue()
    processes = [
        context.Process(target=count, args=(threads, seconds, start, answers), daemon=True) for _ in range(loops)
    ]
    for process in processes:
        process.start()
    try:
        return sum(answers.get(timeout=2 * LIMIT_S) for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def rates(cores: int, seconds: float, rounds: int) -> dict[str, float]:
    """By the legs of worker_scaling.py, on so many cores; the best of rounds in turn."""
    legs = {"one worker": (1, cores), "two workers": (2, 1), "one worker of one thread": (1, 1)}
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])  # the loops' processes inherit it
    try:
        every = [{name: rate(*leg, seconds) for name, leg in legs.items()} for _ in range(rounds)]
    finally:
        os.sched_setaffinity(0, allowed)
    return {name: max(each[name] for each in every) for name in legs}
