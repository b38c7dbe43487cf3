"""The packed format: one safetensors file with integer codes of b bits, scales, and all else in float.

Tensors: `codes/LAYER` (uint8, packed by `codes.pack`), `scale/LAYER` or `levels/LAYER` (fp32), `input/SLOT/NAME`, and
`float/KEY` of the state dict. Metadata: one key, `harness_packed`, JSON (README.md lists its entries).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.exporting.inputs import built, described
from harness.exporting.network import Network, restore
from harness.quantization.integer_codes import Codes, codes_digest, pack, unpack
from harness.records.files import make_folder_of, no_safetensors, written_aside
from harness.records.schema import CODES

ABOUT = "harness_packed"
#: Of the format; a reader refuses what is newer.
VERSION = 1


def save(path: Path, network: Network, about: Mapping[str, Any]) -> None:
    """Write a network, atomically. about: further JSON values for its metadata."""
    tensors: dict[str, Tensor] = {f"float/{name}": value for name, value in network.floats.items()}
    layers = {}
    for name, one in network.layers.items():
        tensors[f"codes/{name}"] = pack(one.codes, one.bits)
        if one.levels is not None:
            tensors[f"levels/{name}"] = one.levels
        elif one.scale is not None:
            tensors[f"scale/{name}"] = one.scale
        layers[name] = {"bits": one.bits, "shape": list(one.codes.shape), "zero": one.zero}
    for slot, module in network.inputs.items():
        tensors |= {f"input/{slot}/{name}": value for name, value in module.state_dict().items()}
    parts = {
        "version": VERSION,
        CODES: codes_digest(network.layers),
        "layers": layers,
        "inputs": {slot: described(module) for slot, module in network.inputs.items()},
        "deployed": list(network.deployed),
    }
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    make_folder_of(path)
    with written_aside(path) as aside:
        save_file(own, aside, {ABOUT: json.dumps({**about, **parts}, sort_keys=True)})


def read(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network in a file, and its metadata. Raises UserError for what is no such file."""
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(ABOUT)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if written else {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        why = "is a folder; load_packed reads a file" if path.is_dir() else f"cannot be read: {error}"
        raise UserError(f"{path}: {why}") from None
    except SafetensorError as error:
        if _is_onnx(path):
            raise UserError(f"{path}: is an ONNX file: onnxruntime runs it; load_packed reads packed files") from None
        raise UserError(
            f"{path}: {no_safetensors(path, error)}; load_packed reads what harness.export writes"
        ) from None
    if not written:
        raise UserError(f"{path}: no packed network: its metadata has no {ABOUT!r}; harness.export writes such files")
    about = json.loads(written)
    if about["version"] > VERSION:
        raise UserError(f"{path}: format {about['version']}; this version of the harness reads up to {VERSION}")
    layers = {name: _codes(name, each, tensors) for name, each in about["layers"].items()}
    if (digest := codes_digest(layers)) != about.get(CODES, digest):  # files of earlier versions have none
        raise UserError(f"{path}: damaged: its codes have the digest {digest}, and it says {about[CODES]}")
    inputs = {slot: built(each, _below(f"input/{slot}/", tensors)) for slot, each in about["inputs"].items()}
    return Network(layers, inputs, _below("float/", tensors), tuple(about["deployed"])), about


def load_packed(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The deployed network in a packed file, on the CPU and in evaluation mode; its weights equal to the last bit.

    model: a network of the same architecture, which is changed in place and returned. Not needed for files that
    `python -m harness.export` wrote of a run: they hold its configuration, from which the network is built.
    Raises UserError for what is no such file, and for another network.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(model, nn.Module | None):
        given = ", ".join(_kind(each) for each in (path, model))
        raise UserError(f"load_packed({given}): write load_packed(path, model): a file's path, then a network or None")
    network, about = read(Path(path))
    if model is not None:
        return _restored(path, model, network)
    if "config" not in about:
        raise UserError(f"{path}: holds no configuration of a run; give it the network: load_packed(path, model)")
    from harness.core import outside
    from harness.exporting.architecture import architecture

    outside.look_near(Path(path).parent)

    return _restored(path, architecture(about), network)


def _kind(given: object) -> str:
    return given.__name__ if isinstance(given, type) else type(given).__name__


def _restored(path: Path | str, model: nn.Module, network: Network) -> nn.Module:
    try:
        return restore(model, network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _is_onnx(path: Path) -> bool:
    """Whether a file begins as ONNX files do: with field 1, a version, and field 2 (its producer) or 7 (the graph)."""
    try:
        with open(path, "rb") as file:
            first = file.read(3)
    except OSError:
        return False
    return len(first) == 3 and first[0] == 0x08 and first[2] in (0x12, 0x3A)


def _codes(name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codes:
    codes = unpack(tensors[f"codes/{name}"], about["bits"], tuple(about["shape"]))
    return Codes(codes, about["bits"], tensors.get(f"scale/{name}"), about["zero"], tensors.get(f"levels/{name}"))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
