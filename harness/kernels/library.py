"""The compiled functions of kernels/csrc/, and how Python calls them."""

import ctypes
import os
import shutil
import subprocess
import warnings
from functools import cache

from torch import Tensor

from harness.kernels.compiler import load_library

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

#: A weight, how companding bends its range, and room (`CURVE` and `ROOM` in csrc/companding.c).
_CURVE = (_P, _N, _N, _P, _P, ctypes.c_int, ctypes.c_int, _F, ctypes.c_int, _P, _P, _P)

_SIGNATURES = {
    "peaks": (_P, _N, _N, _P, _P),
    "regularize": (_P, _N, ctypes.c_double, _F, _P),
    "quantize": (_P, _P, _N, _N, _P, _F, ctypes.c_int),
    "quantize_backward": (_P, _P, ctypes.c_int, _P, _N, _N, _P, _P, _F, _F, ctypes.c_int, _P, _P, _P),
    "track": (_P, _N, _F),
    "dampening_value": (_P, _N, _N, _P, _F, _F, _P, _P),
    "dampening_gradient": (_P, _P, _N, _N, _P, _F, _F, _F),
    "moments": (_P, _N, _P, _P),
    "standardized_cubic": (_P, _P, _N, ctypes.c_double, ctypes.c_double, _F, _F, _F),
    "image_batch": (_P, _N, _P, _N, _N, _N, _N, _P, _P, _N, _P, _P, _P),
    "symmetry": (_P, _N, ctypes.c_int, _P, _P, _P),
    "mean_signs": (_P, _N, ctypes.c_int, _P, _P, _F, ctypes.c_int),
    "symmetry_fours": (_P, _N, _N, _F, *(_P,) * 6),
    "signed_factor": (_P, _P, _N, _F, ctypes.c_int),
    "compand": (*_CURVE, _P, ctypes.c_int, _P),
    "companded_codes": (*_CURVE, _P),
    "compand_backward": (_P, _P, ctypes.c_int, _P, _P, _N, _N, _P, ctypes.c_int, *(_P,) * 6),
    "hold": (_P, _P, _P, _P, _N, _N, _P),
    "hold_backward": (_P, _P, _P, _P, _N, _N, _P, _P),
    "held_codes": (_P, _P, _P, _P, _N, _N, _P, _F, _F),
    "on_grid": (_P, _P, _N, _N, _P, _P, _P),
    "on_grid_backward": (_P, _P, _P, _N, _N, _P, _P, _P, _F, _P, _P),
    "settle": (_P, _P, _P, _P, _P, _N, _F, ctypes.c_int),
}

#: Functions that return 0, or -1 where an argument is out of range.
_WITH_STATUS = ("image_batch",)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there is no C compiler, or with a warning where it fails."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        loaded = load_library(compiler)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(f"plain tensor operations are used, several times slower: {error}", stacklevel=2)
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, ctypes.c_int if name in _WITH_STATUS else None
    return loaded


def call(name: str, *arguments: Tensor | float | None) -> int | None:
    """Call a function of the library; a tensor goes as the address of its first element. Its status, if it has one."""
    found = library()
    assert found is not None, "ask harness/kernels/dispatch.py first"
    # A list, not a generator, which takes longer: some passes of a small layer are as short as this.
    status: int | None = getattr(found, name)(
        *[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
    )
    return status
