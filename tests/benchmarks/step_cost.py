"""What the regularizer, the tracker and QAT cost: ratios to the plain float step, measured in one run.

    python tests/benchmarks/step_cost.py [--json FILE]

Steps of all variants are timed in turn, so that a machine that slows down slows all alike; medians are compared.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from harness.config import component
from harness.layers import attach
from harness.methods.oscillation import OscillationRegularizer
from harness.models import build_model
from harness.oscillation import OscillationTracker
from harness.quantization import MaxAbsQuantizer

CASES = {
    "mlp5, 32x32 images, batch 128": ({"name": "mlp5"}, 128, 60),
    "resnet18 (quarter width), batch 32": ({"name": "resnet18", "width": 16}, 32, 12),
}
BITS = 3


def make_step(knobs: dict[str, object], batch: int, variant: str) -> Callable[[], None]:
    """One training step of a variant: plain, regularizer, tracker, both, or ste."""
    model = build_model(component("model", knobs), (3, 32, 32), 10, seed=0)
    attach(model, **({"weight_quantizer": lambda layer: MaxAbsQuantizer(BITS)} if variant == "ste" else {}))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    regularizer = OscillationRegularizer(model, BITS, strength=1.0)
    tracker = OscillationTracker(model, BITS)
    inputs, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        if variant in ("regularizer", "both"):
            regularizer.add_gradient()
        optimizer.step()
        if variant in ("tracker", "both"):
            tracker.update()

    return step


def measure(knobs: dict[str, object], batch: int, rounds: int) -> dict[str, float]:
    """Median seconds a step of each variant."""
    variants = ("plain", "regularizer", "tracker", "both", "ste")
    steps = {variant: make_step(knobs, batch, variant) for variant in variants}
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for round_index in range(rounds + 3):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            if round_index >= 3:  # the first rounds warm caches and allocators up
                times[variant].append(time.perf_counter() - start)
    return {variant: statistics.median(values) for variant, values in times.items()}


def main() -> None:
    """Print the table, and write it as JSON when asked."""
    parser = argparse.ArgumentParser(description="Cost of a training step, as ratios to the plain float step.")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    results = {}
    print(f"{'case':<36}{'plain ms':>9}" + "".join(f"{name:>13}" for name in ("regularizer", "tracker", "both", "ste")))
    for case, (knobs, batch, rounds) in CASES.items():
        medians = measure(knobs, batch, rounds)
        ratios = {name: medians[name] / medians["plain"] for name in ("regularizer", "tracker", "both", "ste")}
        results[case] = {"plain_ms": 1e3 * medians["plain"], **ratios}
        print(f"{case:<36}{1e3 * medians['plain']:9.2f}" + "".join(f"{value:12.2f}x" for value in ratios.values()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"threads": torch.get_num_threads(), "torch": torch.__version__, "cases": results}, file, indent=1
            )


if __name__ == "__main__":
    main()
