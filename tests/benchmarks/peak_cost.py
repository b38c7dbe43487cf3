"""How much of a GPU a training step uses: `python tests/benchmarks/peak_cost.py --device cuda`; cpu with --tiny.

Floating-point operations of a step (its matrix products and convolutions, forward and backward, as torch counts them)
over its time, as a share of what one large matrix product reaches in bf16 here; and the kernels that a step launches.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from bench_common import Loop, configure, in_turn, make_session, models, settings
from bench_report import Clock, Row, figure
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

#: Side of the matrices of the product that stands for the peak.
SIDE = 8192
NETWORKS = ("resnet18", "vit_tiny")


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of a step that is not compiled."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def launches(step: Callable[[], object]) -> int:
    """Kernels, copies and fills that a step starts on a GPU; 0 on a CPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return sum(1 for event in found.events() if event.device_type == DeviceType.CUDA)


def product(side: int, device: str) -> Callable[[], object]:
    """A product of two bf16 matrices: 2 * side**3 operations."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: one @ other


def case(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network, with regularizer and tracker."""
    clock, batch, side = Clock(), 8 if tiny else 128, 64 if tiny else SIDE

    def session(compiled: str) -> Any:
        return make_session(configure(models(tiny)[name], "oscillation", batch, device=device, compiled=compiled))

    plain, whole = Loop(session("off")), session("auto" if tiny else "on")
    plain()
    done = operations(plain)
    steps = Loop(whole)
    works: dict[str, Callable[[], object]] = {"step": steps, "product": product(side, device)}
    times = in_turn(works, 2 if tiny else 12, warmup=1 if tiny else 3, device=device, repeat=1 if tiny else 10)
    step_s, product_s = (statistics.median(times[work]) for work in ("step", "product"))
    reached, peak = done / step_s / 1e12, 2 * side**3 / product_s / 1e12
    details = {"ms": 1e3 * step_s, "gflop": done / 1e9, "tflops": reached, "peak_tflops": peak, **settings(whole)}
    what = f"a step of {name}, regularizer + tracker"
    of = f"bf16 product of {side} x {side}"
    rows = [
        figure(f"{what}: share of the bf16 peak", of, 100 * reached / peak, unit="%", seconds=clock.lap(), **details),
        figure(f"{what}: TFLOP/s", "a second", reached, unit="TFLOP/s", seconds=clock.lap()),
    ]
    for how, loop in (("as it runs", steps), ("plain operations", plain)):
        rows.append(figure(f"{what}: kernel launches, {how}", "a step", launches(loop), unit="", seconds=clock.lap()))
    return rows


def measure(device: str = "cuda", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    rows = []
    for name in NETWORKS:
        rows += case(name, device, tiny)
        torch.compiler.reset()
    return rows


if __name__ == "__main__":
    from bench import run_alone

    run_alone("peak_cost")
