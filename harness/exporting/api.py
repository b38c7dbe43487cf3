"""`harness.export`: a network of one's own, deployed and written to a file."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness.core.bits import ScalePolicy
from harness.core.config_base import ActivationsConfig, QuantizerConfig, section
from harness.core.errors import UserError, unknown
from harness.core.layer_points import LayerPoints
from harness.exporting import onnx_file, packed
from harness.exporting.network import taken
from harness.quantization.deploy import round_rest, weight_bits
from harness.quantization.wanted import WantedBits

#: Each format with the suffix of its files. A file of another suffix is packed, unless a format is given.
SUFFIXES = {"packed": ".safetensors", "onnx": ".onnx"}


@dataclass(frozen=True)
class Exported:
    """A file of a network. size, float_bytes, code_bytes: bytes of the file, in fp32, and of the codes alone."""

    path: Path
    model: nn.Module
    size: int
    float_bytes: int
    code_bytes: int


def export(
    model: nn.Module,
    bits: WantedBits | LayerPoints | Mapping[str, WantedBits],
    to: Path | str,
    format: str | None = None,
    inputs: Tensor | None = None,
    scale: ScalePolicy = "recalibrate",
    quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    activations: ActivationsConfig | Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
) -> Exported:
    """Round a copy of a network to nearest and write it to the file `to`; the network itself stays as it is.

    format: "packed" (`harness.load_packed` reads it) or "onnx", which needs `inputs`, a batch (N, ...) as the network
    takes it, N >= 2. By default the suffix of `to` decides: onnx for ".onnx", else packed. Its folder is made where it
    is missing. All else is as for `round_to_nearest`. Returns the file, its sizes and the deployed copy. Raises
    UserError as `round_to_nearest` does, for a format that contradicts the suffix, for a file that cannot be made, and
    for a network that the format cannot hold.
    """
    path = Path(to)
    format = _format(path, format)
    if format == "onnx" and (not isinstance(inputs, Tensor) or len(inputs) < 2):
        given = f"inputs is a {type(inputs).__name__};" if isinstance(inputs, list | tuple) else "inputs:"
        raise UserError(f"{given} format onnx needs a batch of two or more (N, ...), by which the graph is drawn")
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    norms = section(quantizer, QuantizerConfig, "quantizer").quantizes_norms
    wanted = weight_bits(model, bits, exclude, norms)
    deployed = deepcopy(model).eval()
    round_rest(deployed, bits, scale, quantizer, exclude, activations, calibration)
    network = taken(deployed, wanted)
    about = {"content": "a deployed network in integer codes: harness.load_packed(path, model) reads it"}
    if inputs is not None and format == "onnx":
        onnx_file.write(path, deployed, network, inputs, about)
    else:
        packed.save(path, network, about)
    return Exported(path, deployed, path.stat().st_size, network.float_bytes, network.code_bytes)


def _format(path: Path, given: str | None) -> str:
    """The format of a file. Raises UserError for an unknown one, and for one that the file's suffix contradicts."""
    if given is not None and given not in SUFFIXES:
        raise unknown("format", given, SUFFIXES)
    said = next((name for name, suffix in SUFFIXES.items() if path.suffix.lower() == suffix), None)
    if given and said and given != said:
        raise UserError(
            f"format {given!r}: {path.name!r} ends as files of format {said!r} do; "
            f"name it {path.stem + SUFFIXES[given]!r}, or give format {said!r}"
        )
    return given or said or "packed"
