"""Times of the products of layers in fp32 and int8 on the device at hand, kept in a file so that a run repeats.

The file is JSON: `device`, `torch`, and `products`, by shape (`LayerSize.product`) the seconds of `fp32` and `int8`. It
may be written by hand for another device.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.quantization.layer_sizes import FLOAT_BITS, LayerSize

#: What sizes of an int8 product have to be multiples of on GPUs, and rows that there must be at least.
_MULTIPLE, _LEAST_ROWS = 8, 32
#: Times that a product is run: the fastest counts.
_REPEATS = 20


class KernelTimes(NamedTuple):
    """Seconds of (fp32, int8) by product, and the first 16 hex digits of the file's sha256."""

    seconds: dict[str, tuple[float, float]]
    digest: str

    def of(self, size: LayerSize, point: BitWidths) -> float:
        """Seconds of a layer at a point.

        No kernel of fewer bits is there to be timed: the time of int8 is scaled with bit operations where inputs are
        rounded, and that of fp32 with the weights' bits where they are not.
        """
        fp32, int8 = self.seconds[size.product]
        weights = point.weights or FLOAT_BITS
        if point.activations is None:
            return fp32 * weights / FLOAT_BITS
        return int8 * weights * point.activations / 64


def kernel_times(path: Path, sizes: Iterable[LayerSize], device: torch.device) -> KernelTimes:
    """The table in a file; where there is none, it is measured on the device and written first.

    Raises UserError for a file that is no such table, or lacks a product.
    """
    wanted = {size.product: size for size in sizes}
    if not path.exists():
        _write_once(path, _measured(wanted.values(), device))
    text = path.read_bytes()
    try:
        products = json.loads(text)["products"]
        seconds = {name: (float(times["fp32"]), float(times["int8"])) for name, times in products.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"table: {path}: no table of kernel times ({type(error).__name__}: {error})") from None
    if missing := [name for name in wanted if name not in seconds]:
        raise UserError(
            f"table: {path}: has no time of the products {', '.join(missing[:4])} (it has: {', '.join(seconds)}); "
            "name a file that is not there, and they are measured"
        )
    return KernelTimes(seconds, sha256(text).hexdigest()[:16])


def _write_once(path: Path, table: dict[str, Any]) -> None:
    """Write a file whole, unless another process was faster: its table counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    aside.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _measured(sizes: Iterable[LayerSize], device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    products = {}
    for size in sizes:
        rows, inner, outer = max(_LEAST_ROWS, _up(size.rows)), _up(size.inner), _up(size.outer)
        products[size.product] = {
            "fp32": size.groups * _seconds(torch.mm, _ones(size.rows, size.inner, size.outer, torch.float32, device)),
            "int8": size.groups * _seconds(torch._int_mm, _ones(rows, inner, outer, torch.int8, device)),
        }
    return {"device": name, "torch": torch.__version__, "products": products}


def _up(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def _ones(rows: int, inner: int, outer: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    shapes = (rows, inner), (inner, outer)
    first, second = (torch.ones(shape, dtype=kind, device=device) for shape in shapes)
    return first, second


def _seconds(product: Callable[[Tensor, Tensor], Tensor], pair: tuple[Tensor, Tensor]) -> float:
    """The fastest of several times."""
    best = float("inf")
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        product(*pair)
        if pair[0].is_cuda:
            torch.cuda.synchronize(pair[0].device)
        best = min(best, time.perf_counter() - begun)
    return best
