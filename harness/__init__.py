"""A benchmark of training methods for networks that survive weight quantization.

`import harness` costs nothing: the names of the library interface are looked up on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Stored in every record; goes up by one whenever a change moves a number that a run reports.
#: 1: first version. 2: channels-last, native passes, averages over a common factor, precision: auto.
#: 3: native passes of lsq, freezing, dampening and kure, which sum in another order; images of one channel are
#: channels-last for the first convolution. 4: native pass of symreg; `train.precision: auto` is bf16 on more
#: CPUs; attention of timm with a separate bias of `qkv` adds it after the layer. 5: native pass of lcq; symreg's pairs.
NUMERICS_VERSION = 5

_LIBRARY = {
    "attach": "harness.quantization.bounds",
    "audit": "harness.quantization.audit",
    "OscillationRegularizer": "harness.oscillation.regularizer",
    "OscillationTracker": "harness.oscillation.tracker",
    "MaxAbsQuantizer": "harness.quantization",
    "LSQQuantizer": "harness.quantization",
    "observe": "harness.quantization",
    "deploy": "harness.training.deploying",
    "export": "harness.exporting.api",
    "load_packed": "harness.exporting.packed",
    "round_to_nearest": "harness.quantization.deploy",
}
__all__ = ["NUMERICS_VERSION", "__version__", *_LIBRARY]  # noqa: PLE0604  (names served by __getattr__)


def __getattr__(name: str) -> Any:
    if name in _LIBRARY:
        return getattr(import_module(_LIBRARY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LIBRARY})
