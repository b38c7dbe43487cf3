"""Images to classes: cross-entropy and accuracy.

Inputs: float32 (N, C, H, W), normalised. Targets: class numbers, int64 (N,). Outputs: logits (N, classes).
"""

from typing import TYPE_CHECKING, ClassVar

from harness.core.metric import Metric
from harness.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

ACCURACY = Metric(
    "accuracy",
    "acc",
    higher_is_better=True,
    unit="%",
    scale=100,
    digits=2,
    low=0,
    high=1,
    margin=0.01,
    tolerance=0.005,
)


class Classification(Task):
    """Accuracy in [0, 1], shown in %; loss in nats."""

    metric: ClassVar[Metric] = ACCURACY
    smooths_labels: ClassVar[bool] = True

    def loss(self, outputs: "Tensor", targets: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def summed(self, outputs: "Tensor", targets: "Tensor", inputs: "Tensor") -> "Tensor":
        import torch
        from torch.nn import functional

        correct = (outputs.argmax(dim=1) == targets).sum()
        return torch.stack([correct.double(), functional.cross_entropy(outputs, targets, reduction="sum").double()])

    def distillation(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """Cross-entropy to the teacher's softmax, in nats."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, teacher.detach().softmax(dim=1))

    def divergence(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """KL(teacher || outputs), in nats."""
        from torch.nn import functional

        target, own = (functional.log_softmax(each, dim=1) for each in (teacher.detach(), outputs))
        return functional.kl_div(own, target, reduction="batchmean", log_target=True)

    def example_targets(self, inputs: "Tensor", outputs: int) -> "Tensor":
        import torch

        return torch.arange(len(inputs), device=inputs.device) % outputs
