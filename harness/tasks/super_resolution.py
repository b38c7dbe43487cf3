"""Images to larger images: L1 loss; PSNR and SSIM on luma, as published results of super-resolution have them.

Inputs: float32 (N, C, h, w) in [0, 1]. Targets and outputs: (N, C, s h, s w) in [0, 1], for a factor s of 2, 3 or 4.

An image is measured as in the released code of EDSR (Lim et al. 2017, arXiv 1707.02921): outputs are clamped to [0, 1]
and rounded to 8 bits, s pixels of each border are cut, and of colours only Y (ITU-R BT.601, 16 to 235) counts. PSNR has
the peak 255. SSIM is that of Wang et al. 2004: a Gaussian window of 11 x 11 with deviation 1.5, wherever it fits into
the image. A split's values are means over its images.
"""

from typing import TYPE_CHECKING, ClassVar

from harness.core.metric import Metric
from harness.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

SSIM = Metric("SSIM", "ssim", higher_is_better=True, margin=0.005, tolerance=0.002, low=-1, high=1)
PSNR = Metric(
    "PSNR",
    "psnr",
    higher_is_better=True,
    unit="dB",
    digits=2,
    low=0,
    high=100,
    margin=0.1,
    tolerance=0.05,
    beside=(SSIM,),
)
#: BT.601: Y = 16 + the sum of these times red, green and blue in [0, 1].
_LUMA = (65.481, 128.553, 24.966)
#: Of SSIM: side and deviation of the window, and the constants that keep it finite.
_SIDE, _DEVIATION, _K1, _K2 = 11, 1.5, 0.01, 0.03
#: The least mean squared error that counts, in units of the peak: that of 100 dB.
_LEAST = 1e-10


class SuperResolution(Task):
    """PSNR in dB; loss: mean absolute difference, of values in [0, 1]."""

    metric: ClassVar[Metric] = PSNR
    free_dimensions: ClassVar[tuple[str | None, ...]] = ("batch", None, "height", "width")
    baseline: ClassVar[str] = "bicubic"

    def loss(self, outputs: "Tensor", targets: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.l1_loss(outputs, targets)

    def summed(self, outputs: "Tensor", targets: "Tensor", inputs: "Tensor") -> "Tensor":
        import torch

        border = targets.shape[-1] // inputs.shape[-1]
        one, other = (luma(each)[:, border:-border, border:-border] for each in (outputs, targets))
        loss = (outputs - targets).abs().double().flatten(1).mean(1)
        return torch.stack([psnr(one, other).sum(), loss.sum(), ssim(one, other).sum()])

    def example_targets(self, inputs: "Tensor", outputs: int) -> "Tensor":
        return inputs.repeat_interleave(outputs, 2).repeat_interleave(outputs, 3)

    def baseline_network(self, outputs: int) -> "nn.Module":
        """Bicubic enlargement by the factor `outputs`, as Pillow and MATLAB do it (a = -0.5)."""
        from torch import nn

        class Bicubic(nn.Module):
            def forward(self, inputs: "Tensor") -> "Tensor":
                return nn.functional.interpolate(inputs, scale_factor=outputs, mode="bicubic", antialias=True)

        return Bicubic()


def luma(images: "Tensor") -> "Tensor":
    """(N, C, H, W) in [0, 1], C 1 or 3 -> Y after rounding to 8 bits, float64 (N, H, W); grey: 0 to 255 as it is."""
    values = images.double().clamp(0, 1).mul(255).round().div(255)
    if images.shape[1] == 1:
        return 255 * values[:, 0]
    return 16 + (values * values.new_tensor(_LUMA)[:, None, None]).sum(1)


def psnr(one: "Tensor", other: "Tensor") -> "Tensor":
    """Peak signal-to-noise ratio in dB, (N,), of images (N, H, W) with the peak 255; at most 100."""
    error = ((one - other) / 255).square().flatten(1).mean(1)
    return -10 * error.clamp_min(_LEAST).log10()


def ssim(one: "Tensor", other: "Tensor") -> "Tensor":
    """Structural similarity, (N,), of images (N, H, W) of at least 11 x 11 with the peak 255."""
    import torch

    offsets = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
    window = torch.exp(-(offsets**2) / (2 * _DEVIATION**2))
    window = window / window.sum()
    moments = torch.stack([one, other, one * one, other * other, one * other], 1)
    for dimension in (2, 3):  # a Gaussian is applied along one dimension after the other
        length = moments.shape[dimension] - _SIDE + 1
        smooth = torch.zeros_like(moments.narrow(dimension, 0, length))
        for at, weight in enumerate(window.tolist()):
            smooth.add_(moments.narrow(dimension, at, length), alpha=weight)
        moments = smooth
    mean, mean_of_other, square, square_of_other, product = moments.unbind(1)
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    both = (2 * mean * mean_of_other + c1) * (2 * (product - mean * mean_of_other) + c2)
    variances = square - mean**2 + square_of_other - mean_of_other**2
    return (both / ((mean**2 + mean_of_other**2 + c1) * (variances + c2))).flatten(1).mean(1)
