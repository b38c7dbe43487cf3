"""`python tests/benchmarks/timm_models.py [MODULE ...] [--markdown FILE]`: timm's families, each by a small member.

Of each module of timm (of those named) the smallest of a few small models gets slots, takes one step of `ste` and one
of `oscillation`, and is deployed at 4 bits. What is refused is excluded, and the rest tried. Wrong is

* a network that computes with a latent weight: NaN in all of them, behind a quantizer that returns zeros, must not
  reach the output. This does not use the probe;
* a refusal of a weight that the output does not depend on;
* a step or a deployment that fails, is not finite, is not on a grid, or is not what was trained.

The exit status is 1 where anything is wrong. Without weights of timm's; on CPUs; about seven minutes of one core.
"""

import argparse
import copy
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import MaxAbsQuantizer, OscillationRegularizer, attach, round_to_nearest
from harness.core.errors import UserError
from harness.models._timm import create
from harness.quantization.audit import OWN, PAST, audit

BITS, CLASSES = 4, 10
#: Words in the names of small models, the smallest first; how many models of a module are compared.
SMALL = ("test", "atto", "femto", "pico", "nano", "xxs", "050", "tiny", "_t", "xs", "_s", "small", "mini", "18", "b0")
COMPARED = 4
SIDES = (32, 64, 96, 128, 224, 256, 384, 512)
#: Above this many parameters a network is built with two blocks, where its constructor takes a depth.
LARGE = 20_000_000


@dataclass
class Result:
    """What came of one model. why: reasons of refusals, and how many layers each. wrong: see above."""

    module: str
    model: str
    parameters: int
    side: int
    layers: int = 0
    why: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst that was found."""
        return "wrong" if self.wrong else "refused" if self.why else "accepted"


def on_meta(name: str, side: int | None = None, **settings: Any) -> nn.Module:
    """A model without memory; where a side is given, one that runs on such images."""
    with torch.device("meta"):
        if side is None:
            return timm.create_model(name)
        return create(name, False, (3, side, side), CLASSES, **settings)


def size(model: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in model.parameters())


def smallest(module: str) -> str:
    """A small model of one of timm's modules, by name and then by the number of parameters."""

    def place(name: str) -> tuple[int, int]:
        return min((i for i, word in enumerate(SMALL) if word in name), default=len(SMALL)), len(name)

    return min(sorted(timm.list_models(module=module), key=place)[:COMPARED], key=lambda name: size(on_meta(name)))


def smallest_form(name: str) -> tuple[int, dict[str, int]]:
    """The side of the smallest square images that a model runs on, and further arguments of its constructor."""
    plain = on_meta(name)
    for settings in [{"depth": 2}] * (size(plain) > LARGE) + [{}]:
        for side in SIDES:
            try:
                on_meta(name, side, **settings)
                return side, settings
            except (UserError, NotImplementedError) as error:
                if "depth" in str(error) and settings:
                    break
    return int(plain.default_cfg["input_size"][-1]), {}  # type: ignore[index, operator]


def study(module: str) -> Result:
    """Try one module of timm."""
    name = smallest(module)
    side, settings = smallest_form(name)
    torch.manual_seed(0)
    model = create(name, False, (3, side, side), CLASSES, **settings)
    result = Result(module, name + ", 2 blocks" * bool(settings), size(model), side)
    images = torch.rand(2, 3, side, side)
    exclude = excluded(model, images, result)
    result.layers = len(attach(copy.deepcopy(model), exclude))
    if not result.layers:
        return result
    for check in (latent_weights_unread, ste, oscillation):
        try:
            result.wrong += check(model, images, exclude)
        except Exception as error:  # of any kind: it is a finding
            result.wrong.append(f"{check.__name__}: {type(error).__name__}: {error}"[:200])
    return result


def excluded(model: nn.Module, images: Tensor, result: Result) -> list[str]:
    """What has to be excluded until nothing is refused; notes why, and refusals without a reason."""
    exclude: list[str] = []
    while True:
        try:
            found = audit(model, images, exclude)
        except UserError as error:  # by its type
            layer, said = re.findall(r"layer '(.*?)': (.*)", str(error))[0]
            kind = type(model.get_submodule(layer)).__name__
            result.why[f"{kind}: {re.split('[,;]', said)[0].removeprefix(kind).strip()}"] += 1
            exclude.append(layer + "*" * ("*' to leave" in said))
            continue
        names = {name: what for what in (PAST, OWN) for name in found.named(what)}
        if not names:
            return exclude
        for name, what in names.items():
            layer, _, own = name.rpartition(".")
            result.why[f"{type(model.get_submodule(layer)).__name__}.{own}: {what}"] += 1
            exclude.append(layer or name)
        for name in list(names)[:3]:
            if finite_without(model, images, [name]):
                result.wrong.append(f"{name} is refused, and the output does not depend on it")


def finite_without(model: nn.Module, images: Tensor, names: Iterable[str]) -> bool:
    """Whether the output is finite with NaN in the named parameters."""
    spoilt = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            spoilt.get_parameter(name).fill_(torch.nan)
    return all(bool(output.isfinite().all()) for output in outputs(spoilt, images))


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Logits in training and in evaluation mode."""
    for training in (True, False):
        yield logits(model.train(training), images)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The first of several outputs, where an auxiliary head gives further ones in training."""
    output: Any = model(images)
    return output[0] if isinstance(output, tuple | list) else output


class Zeros(nn.Module):
    """A quantizer that returns zeros."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


def latent_weights_unread(model: nn.Module, images: Tensor, exclude: list[str]) -> Iterator[str]:
    """NaN in every latent weight must not reach the output."""
    slotted = copy.deepcopy(model)
    layers = attach(slotted, exclude, weight_quantizer=lambda layer: Zeros())
    if finite_without(slotted, images, [f"{name}.weight" for name in layers]):
        return
    read = [name for name in layers if not finite_without(slotted, images, [f"{name}.weight"])]
    yield f"latent weights are read: {', '.join(read) or 'with zeros alone the output is not finite'}"


def ste(model: nn.Module, images: Tensor, exclude: list[str]) -> Iterator[str]:
    """A step of quantization-aware training; what is deployed is what was trained."""
    trained = copy.deepcopy(model)
    attach(trained, exclude, weight_quantizer=lambda layer: MaxAbsQuantizer(BITS).fit(layer.weight))
    yield from step(trained, images)
    yield from deployed(trained, images, exclude, list(outputs(trained, images))[-1])


def oscillation(model: nn.Module, images: Tensor, exclude: list[str]) -> Iterator[str]:
    """A step of float training with the regularizer."""
    trained = copy.deepcopy(model)
    yield from step(trained, images, OscillationRegularizer(trained, BITS, 1.0, exclude=exclude))
    yield from deployed(trained, images, exclude)


def step(model: nn.Module, images: Tensor, regularizer: OscillationRegularizer | None = None) -> Iterator[str]:
    """One step of gradient descent."""
    loss = functional.cross_entropy(logits(model.train(), images), torch.arange(len(images)))
    loss.backward()
    if not loss.isfinite() or (regularizer and not regularizer.add_gradient().isfinite()):
        yield "the loss is not finite"
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # batch norm over two images gives gradients of any size
    torch.optim.SGD(model.parameters(), 1e-3).step()


def deployed(
    trained: nn.Module, images: Tensor, exclude: list[str], logits_before: Tensor | None = None
) -> Iterator[str]:
    """Rounded to nearest: on a grid, finite, and as before where it was rounded in training."""
    names = list(attach(copy.deepcopy(trained), exclude))
    rounded = round_to_nearest(copy.deepcopy(trained).eval(), BITS, exclude=tuple(exclude))
    for name in names:
        if len(rounded.get_parameter(f"{name}.weight").unique()) >= 2**BITS:
            yield f"{name} is not on a grid of {BITS} bits"
    with torch.no_grad():
        after = logits(rounded, images)
    if not after.isfinite().all():
        yield "deployed, the output is not finite"
    if logits_before is not None and not torch.allclose(after, logits_before, rtol=1e-3, atol=1e-4):
        yield "what is deployed is not what was trained"


def table(results: list[Result]) -> str:
    """Markdown: totals, and a line for each module."""
    counts = Counter(result.verdict for result in results)
    lines = [
        f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}: of {len(results)} modules "
        f"{counts['accepted']} are accepted, {counts['refused']} refused until layers are excluded, "
        f"{counts['wrong']} wrong.",
        "",
        "| module | model | parameters | images | quantized layers | verdict | why |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for result in results:
        why = [*result.wrong, *(f"{reason} ({count})" for reason, count in result.why.items())]
        cells = (result.module, result.model, f"{result.parameters / 1e6:.1f} M", f"{result.side}x{result.side}")
        lines.append(f"| {' | '.join(cells)} | {result.layers} | {result.verdict} | {'; '.join(why)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all of timm's")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # two wait for each other by spinning where others compute too
    results = []
    for module in options.modules or timm.list_modules():
        begun = time.monotonic()
        results.append(study(module))
        print(f"{module}: {results[-1].verdict}, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
