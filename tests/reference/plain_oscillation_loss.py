"""The oscillation loss as the paper states it, in plain autograd; shares no code with the harness.

R = strength * mean_i(q_i^2 - w_i^2),  q = s round(w / s) straight-through,  s = max|w| / Q left in the graph
"""

import torch
from torch import Tensor


def plain_loss(
    weight: Tensor,
    bits: int,
    strength: float,
    per_channel: bool = False,
    ratios: Tensor | float | None = None,
    detached: bool = False,
) -> Tensor:
    """R of one layer, shape (). ratios: the fraction of max|w| to clip at (one, or one a channel); None: no clipping.

    Channels are looped over; each shares a step. A group of zeros adds nothing.
    """
    high = 2 ** (bits - 1) - 1
    groups = list(weight) if per_channel else [weight]
    total = weight.new_zeros(())
    for number, group in enumerate(groups):
        source = group.detach() if detached else group
        step = source.abs().max() / high
        if ratios is not None:
            step = step * (ratios if isinstance(ratios, float) else ratios.flatten()[number if per_channel else 0])
        if float(step.detach()) == 0:
            total = total - (group * group).sum()
            continue
        scaled = group / step
        if ratios is not None:
            # Decided: up to 1e-4 of a step beyond the range is inside, so that no ulp of w / s decides a gradient.
            scaled = torch.where(scaled > high + 1e-4, torch.full_like(scaled, high), scaled)
            scaled = torch.where(scaled < -high - 1e-4, torch.full_like(scaled, -high), scaled)
        quantized = step * (scaled + (torch.round(scaled) - scaled).detach())
        total = total + (quantized * quantized - group * group).sum()
    return strength * total / weight.numel()


def plain_gradient(weight: Tensor, bits: int, strength: float, **options: object) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by autograd, in the arithmetic of `weight`'s type."""
    leaf = weight.detach().clone().requires_grad_()
    loss = plain_loss(leaf, bits, strength, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
