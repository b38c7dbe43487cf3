"""What deployed codes gain in torchao's weight-only types on this CPU: one linear layer, beside its float weights.

int8: `Int8Tensor`, a scale per row. int4: `Int4OpaqueTensor`, of torchao's prototypes, the one of its 4-bit types that
runs on CPUs; its groups of 32 inputs share the scale of their row, and its zero point is the code 8, which is that of
codes at 4 bits. Each layer's outputs are compared with the deployed ones first. Times are CPU seconds of one thread,
the least of some rounds in turn, so that other processes count little.

python tests/benchmarks/torchao_cost.py [--tiny]
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor
from torchao.quantization import Int8Tensor

from harness import round_to_nearest
from harness.quantization.integer_codes import Codes, find_codes

#: Inputs and outputs of the layer; rows of a batch.
SIZES, BATCHES = (256, 1024, 4096), (1, 16, 128)
#: Inputs that share a scale in the 4-bit type.
GROUP = 32


def deployed(size: int, bits: int) -> tuple[nn.Module, Codes]:
    """A linear layer with weights on a grid, one step per output, and their codes."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    round_to_nearest(layer, bits, quantizer={"granularity": "channel"})
    codes = find_codes(layer.weight, bits)
    assert codes is not None
    assert codes.scale is not None
    plain = nn.Linear(size, size)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return plain.requires_grad_(False), codes


def as_int8(codes: Codes) -> Tensor:
    """Codes of up to 8 bits in torchao's type."""
    signed = (codes.codes.short() - int(codes.zero)).to(torch.int8)
    assert codes.scale is not None
    return Int8Tensor(signed, codes.scale[:, None], [1, signed.shape[1]], torch.float32)


def as_int4(codes: Codes) -> Tensor:
    """Codes of 4 bits in torchao's type: scale (code - 8) + 0."""
    assert codes.scale is not None
    rows, columns = codes.codes.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.codes.int(), 1)
    scales = codes.scale.expand(columns // GROUP, rows)
    pairs = torch.stack([scales, torch.zeros_like(scales)], 2).contiguous()
    return Int4OpaqueTensor(packed, pairs, [1, GROUP], codes.codes.shape)


@torch.inference_mode()
def case(size: int, batch: int, bits: int, rounds: int) -> dict[str, object]:
    """How many times as fast as the float layer torchao's is. worst: the largest difference of outputs, relative."""
    layer, codes = deployed(size, bits)
    inputs = torch.randn(batch, size)
    bias = layer.bias
    assert isinstance(bias, Tensor)
    weight = as_int8(codes) if bits == 8 else as_int4(codes)
    wanted, found = layer(inputs), nn.functional.linear(inputs, weight, bias)
    worst = float((wanted - found).abs().max() / wanted.abs().max())
    assert worst < 1e-4, worst
    works = (lambda: layer(inputs), lambda: nn.functional.linear(inputs, weight, bias))
    repeat = max(1, 2**22 // (size * size * batch))
    plain, coded = (
        min(each) for each in zip(*([cpu_seconds(w, repeat) for w in works] for _ in range(rounds)), strict=True)
    )
    return {"size": size, "batch": batch, "bits": bits, "speed_up": round(plain / coded, 2), "worst": worst}


def cpu_seconds(work: Callable[[], object], repeat: int) -> float:
    """Of the process, for some calls."""
    begun = time.process_time()
    for _ in range(repeat):
        work()
    return time.process_time() - begun


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="one small case")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    for size in (64,) if tiny else SIZES:
        for batch in (2,) if tiny else BATCHES:
            for bits in (8, 4):
                print(json.dumps(case(size, batch, bits, 2 if tiny else 8)), flush=True)
