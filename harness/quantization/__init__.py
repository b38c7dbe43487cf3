"""Rounding, grids and weight quantizers: pure tensor functions below, small modules above."""

from harness.quantization.autograd import round_ste
from harness.quantization.companding import CompandingQuantizer
from harness.quantization.decoupled import DecoupledQuantizer
from harness.quantization.dorefa import DoReFaQuantizer, DoReFaTransform
from harness.quantization.frozen import FrozenQuantizer
from harness.quantization.grid import Levels, clip_ratio, levels, max_abs, round_to_codes
from harness.quantization.learned_step import LSQQuantizer
from harness.quantization.quantizer import ClippedQuantizer, MaxAbsQuantizer, WeightQuantizer, make_quantizer
from harness.quantization.statistical import StatisticalQuantizer

__all__ = [
    "ClippedQuantizer",
    "CompandingQuantizer",
    "DecoupledQuantizer",
    "DoReFaQuantizer",
    "DoReFaTransform",
    "FrozenQuantizer",
    "LSQQuantizer",
    "Levels",
    "MaxAbsQuantizer",
    "StatisticalQuantizer",
    "WeightQuantizer",
    "clip_ratio",
    "levels",
    "make_quantizer",
    "max_abs",
    "round_ste",
    "round_to_codes",
]
