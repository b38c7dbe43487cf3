"""Tokens to the tokens that follow them: cross-entropy; bits per character, and perplexity beside it.

Inputs: token ids, int64 (N, T). Targets: each one's next token, int64 (N, T). Outputs: logits (N, T, V).

A row's `n` counts predicted tokens, so that figures are means over a split's tokens however it is cut into batches.
Where the data's tokens are characters, the metric is bits per character. With `data.tokenizer: hf:<name>` the same
figure is in bits per token; perplexity (per token), which rows always have beside it, is what is usually reported then.

The baseline `unigram` predicts each token with its frequency in the training text, whatever comes before it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.core.metric import Metric
from harness.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data._samples import TaskData

PERPLEXITY = Metric("perplexity", "ppl", higher_is_better=False, margin=0.1, tolerance=0.05, digits=3, low=1)
BITS = Metric(
    "bits per character",
    "bpc",
    higher_is_better=False,
    digits=3,
    low=0,
    margin=0.02,
    tolerance=0.005,
    beside=(PERPLEXITY,),
)
#: The largest loss in nats whose perplexity is told: that of a larger one is no float any more.
_LARGEST = 700.0
#: Windows of the training text that are counted together.
_COUNTED = 256


class LanguageModelling(Task):
    """Bits per character; loss in nats per token."""

    metric: ClassVar[Metric] = BITS
    smooths_labels: ClassVar[bool] = True
    free_dimensions: ClassVar[tuple[str | None, ...]] = ("batch", "tokens")
    baseline: ClassVar[str] = "unigram"

    def loss(self, outputs: "Tensor", targets: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)

    def summed(self, outputs: "Tensor", targets: "Tensor", inputs: "Tensor") -> "Tensor":
        from torch.nn import functional

        nats = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return nats.double().sum().reshape(1)

    def counted(self, targets: "Tensor") -> int:
        """Tokens."""
        return targets.numel()

    def results(self, sums: Sequence[float], n: int) -> tuple[float, ...]:
        """Bits per token, nats per token, perplexity."""
        nats = sums[0] / n
        return nats / math.log(2), nats, math.exp(min(nats, _LARGEST))

    def distillation(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """Cross-entropy to the teacher's softmax, in nats per token."""
        from torch.nn import functional

        return functional.cross_entropy(outputs.flatten(0, 1), teacher.detach().flatten(0, 1).softmax(dim=1))

    def divergence(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """KL(teacher || outputs), in nats per token."""
        from torch.nn import functional

        target, own = (functional.log_softmax(each.flatten(0, 1), dim=1) for each in (teacher.detach(), outputs))
        return functional.kl_div(own, target, reduction="batchmean", log_target=True)

    def baseline_for(self, data: "TaskData") -> "nn.Module":
        """The logarithm of each token's frequency among training targets, each counted once more than it is there."""
        import torch
        from torch import nn

        counts = torch.ones(data.outputs, dtype=torch.int64, device=data.device)
        for _, targets in data.batches(data.train, _COUNTED):
            counts += torch.bincount(targets.flatten(), minlength=data.outputs)
        logits = (counts / counts.sum()).log()

        class Unigram(nn.Module):
            def forward(self, inputs: "Tensor") -> "Tensor":
                return logits.expand(*inputs.shape, -1)

        return Unigram()

    def example_inputs(self, count: int, shape: Sequence[int]) -> "Tensor":
        """Random tokens, always the same, int64 (count, *shape): 0 or 1, which every vocabulary has."""
        import torch

        return torch.randint(0, 2, (count, *shape), generator=torch.Generator().manual_seed(0))

    def example_targets(self, inputs: "Tensor", outputs: int) -> "Tensor":
        return inputs.roll(-1, 1)
