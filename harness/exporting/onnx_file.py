"""The ONNX format: integer weights with DequantizeLinear, and QuantizeLinear with DequantizeLinear for activations.

Weights of up to 4 bits are INT4 (UINT4 where a table has their levels), others INT8 (UINT8). Opset 21, the first with
4-bit integers. torch.onnx writes the graph; the modules of onnx_operators.py put these operators in it, with 8-bit
codes that are then stored in 4.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.exporting.network import Network
from harness.exporting.onnx_operators import CODES, OPSET, Weight, expressed
from harness.quantization.integer_codes import pack
from harness.quantization.norms import QuantNorm
from harness.quantization.observing import input_sites
from harness.quantization.slots import QuantLayer
from harness.records.files import make_folder_of, write_bytes

#: Bits of a weight that is stored in 4.
_SMALL = 4
_LEVELS = "levels"
#: What a file's metadata says that it is.
CONTENT = "a deployed network in integer codes: onnxruntime runs it, with session.disable_quant_qdq=1"


def write(
    path: Path,
    deployed: nn.Module,
    network: Network,
    inputs: Tensor,
    about: Mapping[str, Any],
    free: Sequence[str | None] = ("batch",),
) -> None:
    """Write a deployed network, atomically, once onnxruntime has run it. inputs: a batch of two or more, (N, ...).

    about: JSON values for its metadata; `content` is CONTENT, whatever they say. free: names of the input's dimensions
    that may have other sizes.
    Raises UserError for a network that ONNX cannot express or onnxruntime cannot run, and where a package of the extra
    `export` is missing.
    """
    check_packages()
    content = _graph(_with_operators(deployed, network), network, inputs, {**about, "content": CONTENT}, free)
    try:
        found = Runner(content)(inputs)
    except Exception as error:
        raise UserError(f"onnxruntime cannot run this network: {_line(error)}") from None
    if not bool(found.isfinite().all()):
        raise UserError("onnxruntime computes values that are not finite for this network")
    make_folder_of(path)
    write_bytes(path, content)


def check_packages() -> None:
    """Raise UserError where a package of the extra `export` is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name}: pip install 'oscillation-harness[export]'") from None


class Runner(nn.Module):
    """Computes the network of a file, or of its content, with onnxruntime on the CPU: inputs (N, ...) to outputs."""

    def __init__(self, file: Path | bytes) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        # By default it also rounds biases to 32-bit integers, where the graph has them in float.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        content = file.read_bytes() if isinstance(file, Path) else file
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, inputs: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        return torch.from_numpy(self.session.run(None, {name: inputs.contiguous().numpy()})[0])


def _with_operators(deployed: nn.Module, network: Network) -> nn.Module:
    """A copy whose layers and slots compute by the operators of ONNX; norms keep the values of their weights."""
    model = deepcopy(deployed).cpu().eval()
    modules = dict(model.named_modules())
    for name, codes in network.layers.items():
        layer = modules[name]
        if isinstance(layer, QuantLayer) and not isinstance(layer, QuantNorm):
            layer.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
            layer.weight_quantizer = Weight(codes)
    for name, site in input_sites(model).items():
        if name in network.inputs:
            site.put(expressed(network.inputs[name]))
    return model


def _graph(
    model: nn.Module, network: Network, inputs: Tensor, about: Mapping[str, Any], free: Sequence[str | None]
) -> bytes:
    """The file's content."""
    dims = {place: torch.export.Dim(name) for place, name in enumerate(free) if name}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            given: Any = {"opset_version": OPSET, "dynamic_shapes": (dims,), "optimize": True, "verbose": False}
            program: Any = torch.onnx.export(model, (inputs,), dynamo=True, **given)
    except Exception as error:
        raise UserError(f"torch.onnx cannot express this network: {_line(error)}") from None
    proto = program.model_proto
    _store(proto.graph, network)
    for node in proto.graph.node:  # where each came from in Python: as long as a small network
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    content: bytes = proto.SerializeToString()
    return content


def _store(graph: Any, network: Network) -> None:
    """Codes of up to 4 bits in 4, tables in place of scales, and nothing that no node reads."""
    import onnx

    kept = {each.name: each for each in graph.initializer}
    for layer, codes in network.layers.items():
        name = f"{layer}.weight_quantizer.{CODES}".removeprefix(".")
        if name not in kept:
            continue  # a norm, or a layer that is never called
        signed = codes.levels is None
        if codes.levels is not None:
            _look_up(graph, name, codes.levels)
        if codes.bits <= _SMALL:
            kind = onnx.TensorProto.INT4 if signed else onnx.TensorProto.UINT4
            values = codes.codes.short() - (2 ** (codes.bits - 1) if signed else 0)
            nibbles = pack((values & 15).to(torch.uint8), 4).numpy().tobytes()
            kept[name].CopyFrom(onnx.helper.make_tensor(name, kind, codes.codes.shape, nibbles, raw=True))
    read = {each for node in graph.node for each in node.input}
    unread = [each for each in graph.initializer if each.name not in read]
    for each in unread:
        graph.initializer.remove(each)
    stale = [each for each in graph.value_info if each.name in kept]
    for each in stale:
        graph.value_info.remove(each)


def _look_up(graph: Any, name: str, levels: Tensor) -> None:
    """Replace the DequantizeLinear of codes by a look-up of their levels, (1, L) or (O, L)."""
    from onnx import TensorProto, helper, numpy_helper

    place, node = next((i, each) for i, each in enumerate(graph.node) if name in each.input)
    table = f"{name.removesuffix(CODES)}{_LEVELS}"
    rows = len(levels)
    size = levels.shape[1]
    graph.initializer.append(numpy_helper.from_array(levels.flatten().numpy(), table))
    indices = f"{name}.indices"
    new = [helper.make_node("Cast", [name], [indices], to=TensorProto.INT32)]
    if rows > 1:  # one table after the other
        dims = next(each for each in graph.initializer if each.name == name).dims
        first = (torch.arange(rows, dtype=torch.int32) * size).view(-1, *[1] * (len(dims) - 1))
        graph.initializer.append(numpy_helper.from_array(first.numpy(), f"{table}.first"))
        new.append(helper.make_node("Add", [indices, f"{table}.first"], [f"{indices}.all"]))
        indices = f"{indices}.all"
    new.append(helper.make_node("Gather", [table, indices], list(node.output), axis=0))
    rest = list(graph.node)[place + 1 :]
    del graph.node[place:]
    graph.node.extend([*new, *rest])


def _line(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]
