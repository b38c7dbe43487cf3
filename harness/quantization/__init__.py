"""Rounding, grids and weight quantizers: pure tensor functions below, small modules above."""

from harness.quantization.activations import (
    ActivationQuantizer,
    RangeQuantizer,
    StaticQuantizer,
    TokenQuantizer,
    make_activation_quantizer,
)
from harness.quantization.autograd import round_ste
from harness.quantization.companding import CompandingQuantizer
from harness.quantization.decoupled import DecoupledQuantizer
from harness.quantization.dorefa import DoReFaQuantizer, DoReFaTransform
from harness.quantization.frozen import FrozenQuantizer
from harness.quantization.grid import Levels, clip_ratio, levels, max_abs, round_to_codes
from harness.quantization.learned_activations import LearnedStepQuantizer, MovingRangeQuantizer
from harness.quantization.learned_step import LSQQuantizer
from harness.quantization.observed import Observed
from harness.quantization.observing import observe
from harness.quantization.quantizer import ClippedQuantizer, MaxAbsQuantizer, WeightQuantizer, make_quantizer
from harness.quantization.statistical import StatisticalQuantizer

__all__ = [
    "ActivationQuantizer",
    "ClippedQuantizer",
    "CompandingQuantizer",
    "DecoupledQuantizer",
    "DoReFaQuantizer",
    "DoReFaTransform",
    "FrozenQuantizer",
    "LSQQuantizer",
    "LearnedStepQuantizer",
    "Levels",
    "MaxAbsQuantizer",
    "MovingRangeQuantizer",
    "Observed",
    "RangeQuantizer",
    "StaticQuantizer",
    "StatisticalQuantizer",
    "TokenQuantizer",
    "WeightQuantizer",
    "clip_ratio",
    "levels",
    "make_activation_quantizer",
    "make_quantizer",
    "max_abs",
    "observe",
    "round_ste",
    "round_to_codes",
]
