"""What the tests of the fused passes share: which pass served what."""

from typing import Any

from torch import Tensor


def pass_of(tensor: Tensor) -> str:
    """The name of the fused pass that a tensor came from; "" where plain operations made it."""
    passes = getattr(tensor.grad_fn, "passes", None)
    return "" if passes is None else type(passes).__name__


def left_over(owner: Any, kind: str) -> list[int]:
    """Of each call of a tracker's or a regularizer's pass from now on, how many layers it did not serve."""
    counts: list[int] = []
    served = getattr(owner._pass, kind)

    def counted(*arguments: Any) -> Any:
        result = served(*arguments)
        counts.append(len(result[1] if isinstance(result, tuple) else result))
        return result

    setattr(owner._pass, kind, counted)
    return counts
