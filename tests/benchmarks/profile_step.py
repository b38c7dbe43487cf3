"""Where the time of a training step goes: `python tests/benchmarks/profile_step.py [--device cuda] [--tiny]`.

The product's loop at default settings with the regularizer, the tracker and augmentation, batch 128. Writes
profile_resnet18.txt and profile_vit_tiny.txt to tests/benchmarks/results: operations by their own time, then groups.
"""

import argparse
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from bench import facts
from bench_common import Loop, clocked, configure, make_session, models, settings
from bench_report import plain_table, sentence
from torch.profiler import ProfilerActivity, profile, record_function

from harness.training.session import Session

NETWORKS = ("resnet18", "vit_tiny")
TOP = 15
STEP = "bench: python between operations"
#: Of operations that the compiler fused and named after their parts: the first pattern that is found.
FUSED = (
    ("normalisation", r"norm"),
    ("activation", r"relu|gelu|softmax|threshold|erf"),
    ("copies", r"copy|clone|convolution|permute|transpose|view|cat"),
)
PLAIN = (
    ("convolution, matmul", r"conv|mm$|mm_|addmm|bmm|matmul|linear|gemm|attention|onednn|mkldnn"),
    *FUSED[:2],
    ("copies", r"copy|clone|contiguous|empty|zero|fill|cat|reorder|_to$|::to$|pad"),
)
GROUPS = (
    *("convolution, matmul", "normalisation", "activation", "optimizer", "regularizer", "tracker", "input", "copies"),
    "other",
)


def named(group: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; whatever runs inside belongs to the group."""

    def inside(*arguments: Any, **options: Any) -> Any:
        with record_function(f"bench: {group}"):
            return work(*arguments, **options)

    return inside


def name_parts(session: Session) -> None:
    """Give the parts of a step their groups, on these very objects."""
    for method in session.methods:
        method.after_backward = named("regularizer", method.after_backward)  # type: ignore[method-assign]
    session.tracker.update = named("tracker", session.tracker.update)  # type: ignore[method-assign]
    optimizer: Any = session.optimizer
    optimizer.step, optimizer.zero_grad = (named("optimizer", work) for work in (optimizer.step, optimizer.zero_grad))
    # The data set is frozen; this is no change of what it holds.
    object.__setattr__(session.dataset, "train_batch", named("input", session.dataset.train_batch))


def group(event: Any) -> str:
    """The group of an operation: that of the part it runs in, else by its name."""
    outer = event
    while outer is not None:
        if outer.name.startswith("bench: ") and outer.name != STEP:
            return cast(str, outer.name.removeprefix("bench: "))
        outer = outer.cpu_parent
    fused = "fused" in event.name or event.name.startswith("triton_")
    name = event.name.lower()
    return next((found for found, pattern in (FUSED if fused else PLAIN) if re.search(pattern, name)), "other")


def short(name: str) -> str:
    """What of an operation's name tells it from others: the compiler's are long, and begin alike."""
    name = re.sub(r"^## Call CompiledFxGraph \w+ ##$", "compiled graph: calls of its kernels", name)
    name = re.sub(r"^graph_\d+_(cpp|triton)_(\w+_)?fused_", "fused: ", name)
    name = name.replace("_native_batch_norm_legit_functional", "batch_norm").replace("native_", "")
    return name if len(name) <= 72 else f"{name[:60]}...{name[-9:]}"


class Tally:
    """Own milliseconds and calls a step, by operation and by group."""

    def __init__(self, events: Iterable[Any], steps: int, device: str) -> None:
        self.groups: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
        self.operations: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        own = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
        for event in events:
            if device != "cpu" and event.name.startswith("bench: "):
                continue  # a range holds no time of the device itself
            milliseconds, where = getattr(event, own) / 1e3 / steps, group(event)
            self.groups[where] += milliseconds
            entry = self.operations[event.name, where]
            entry[0], entry[1] = entry[0] + milliseconds, entry[1] + 1 / steps
        self.total = sum(self.groups.values())

    def top(self) -> list[list[str]]:
        """The longest operations: name, group, calls, milliseconds, share."""
        longest = sorted(self.operations.items(), key=lambda item: -item[1][0])[:TOP]
        return [
            [short(name), where, f"{calls:.1f}", f"{spent:.2f}", f"{100 * spent / self.total:.1f} %"]
            for (name, where), (spent, calls) in longest
        ]

    def by_group(self) -> list[list[str]]:
        """Milliseconds and share of each group, the largest first."""
        ordered = sorted(self.groups.items(), key=lambda item: -item[1])
        return [[where, f"{spent:.2f}", f"{100 * spent / self.total:.1f} %"] for where, spent in ordered]


def report(name: str, device: str, tiny: bool) -> str:
    """The summary of one network."""
    torch._inductor.config.cpp.enable_kernel_profile = True  # kernels have names then
    config = configure(models(tiny)[name], "oscillation", 8 if tiny else 128, device=device)
    session = make_session(config)
    loop, steps = Loop(session), 2 if tiny else 8
    for _ in range(1 if tiny else 4):
        loop()
    plain = statistics.median(clocked(loop, device) for _ in range(steps))
    name_parts(session)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with profile(activities=kinds) as found:
        for _ in range(steps):
            with record_function(STEP):
                loop()
        clocked(lambda: None, device)
    tally = Tally(found.events() or (), steps, device)
    how = settings(session)
    weights = sum(parameter.numel() for parameter in session.model.parameters()) / 1e6
    lines = [
        f"A training step of {name} ({weights:.1f} M weights): batch {config.train.batch_size}, 32x32x3, augmentation,",
        f"oscillation regularizer, tracker; {how['precision']}, compiled: {how['compiled']}.",
        sentence(facts(device)),
        f"Made by tests/benchmarks/profile_step.py{' --tiny' if tiny else ''}.",
        "",
        f"{1e3 * plain:.1f} ms a step without the profiler; {tally.total:.1f} ms under it, which the shares are of.",
        "",
        f"The {TOP} operations with the most time of their own, a step",
        plain_table(("operation", "group", "calls", "ms", "share"), tally.top()),
        "",
        "By group",
        plain_table(("group", "ms", "share"), tally.by_group()),
    ]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def main() -> None:
    """Write both summaries."""
    parser = argparse.ArgumentParser(description="Where the time of a training step goes.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes whose figures mean nothing")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    suffix = "" if options.device == "cpu" else "_gpu"
    for name in NETWORKS:
        text = report(name, options.device, options.tiny)
        (options.into / f"profile_{name}{suffix}.txt").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
