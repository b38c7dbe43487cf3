"""Images made from the statistics of batch norms, for calibration without data.

The recipe of ZeroQ (Cai et al., CVPR 2020; code amirgholami/ZeroQ, distill_data.py). Images x start as noise of N(0, 1)
and are changed by Adam so that what comes to each 2-d batch norm has its running statistics:

    loss = sum_l mean_n ||mu_nl - mu_l||^2 + ||sigma_nl - sqrt(var_l + 1e-6)||^2

with mean and standard deviation of each image n over height and width, one for each channel; the images themselves
count as a layer of mean 0 and variance 1. Adam at a rate of 0.5, which is cut to a tenth after 100 steps without a new
least loss, down to 1e-4.

The released code starts from noise of standard deviation 0.014: it divides by the variance of what it draws, where its
own docstring says N(0, 1). Its standard deviations divide by n - 1, as here.
"""

from typing import Any

import torch
from torch import Tensor, nn

_RATE, _LEAST_RATE, _PATIENCE, _SMALLEST = 0.5, 1e-4, 100, 1e-6


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Those with running statistics of their inputs."""
    return [each for each in model.modules() if isinstance(each, nn.BatchNorm2d) and each.running_mean is not None]


def synthetic_images(model: nn.Module, shape: tuple[int, ...], count: int, steps: int, seed: int) -> Tensor:
    """Images (count, *shape) on the model's device; the model stays as it is. It needs `batch_norms`, and their mode is
    that of evaluation. The same seed gives the same images.
    """
    norms = batch_norms(model)
    assert norms, "the caller has looked for batch norms"
    device = next(model.parameters()).device
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    images = nn.Parameter(noise)
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []
    hooks: list[Any] = [each.register_forward_pre_hook(lambda norm, x: inputs.append((norm, x[0]))) for each in norms]
    optimizer = torch.optim.Adam([images], lr=_RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=_LEAST_RATE, patience=_PATIENCE)
    try:
        with torch.enable_grad():
            for _ in range(steps):
                inputs.clear()
                model(images)
                loss = _distance(images, torch.zeros(shape[0], device=device), torch.ones(shape[0], device=device))
                for norm, x in inputs:
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    loss = loss + _distance(x, norm.running_mean, (norm.running_var + _SMALLEST).sqrt())
                (images.grad,) = torch.autograd.grad(loss, [images])
                optimizer.step()
                schedule.step(loss.detach())
    finally:
        for hook in hooks:
            hook.remove()
    return images.detach()


def _distance(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Of an input (N, C, H, W) from the statistics (C,) that it should have."""
    places = x.flatten(2)
    spread = places.std(dim=2) if places.shape[2] > 1 else torch.zeros_like(places[:, :, 0])
    own = (places.mean(dim=2) - mean).square().sum(dim=1), (spread - deviation).square().sum(dim=1)
    return (own[0] + own[1]).mean()
