"""Images to classes: cross-entropy and accuracy; macro F1 and balanced accuracy where they are asked for.

Inputs: float32 (N, C, H, W), normalised. Targets: class numbers, int64 (N,). Outputs: logits (N, classes).

F1 is the mean over classes of 2 TP / (2 TP + FP + FN), over those that are among targets or predictions. Balanced
accuracy is the mean over classes of the share that is recognised, over those among targets. Both as scikit-learn has
them (`f1_score(average="macro")`, `balanced_accuracy_score`).
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
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
F1 = replace(ACCURACY, name="macro F1", key="f1")
BALANCED = replace(ACCURACY, name="balanced accuracy", key="bacc")


class Classification(Task):
    """Accuracy in [0, 1], shown in %; loss in nats."""

    metric: ClassVar[Metric] = ACCURACY
    further: ClassVar[tuple[Metric, ...]] = (F1, BALANCED)
    smooths_labels: ClassVar[bool] = True

    def loss(self, outputs: "Tensor", targets: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def summed(self, outputs: "Tensor", targets: "Tensor", inputs: "Tensor") -> "Tensor":
        """Correct ones and the loss; for figures beside them, each class' correct ones, targets and predictions."""
        import torch
        from torch.nn import functional

        predicted, right = outputs.argmax(dim=1), self.right(outputs, targets)
        loss = functional.cross_entropy(outputs, targets, reduction="sum").double()
        sums = torch.stack([right.sum().double(), loss])
        if not self.metric.beside:
            return sums
        counts = [torch.bincount(each, minlength=outputs.shape[1]) for each in (targets[right], targets, predicted)]
        return torch.cat([sums, *counts])

    def right(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """Those whose class has the largest logit."""
        return outputs.argmax(dim=1) == targets

    def results(self, sums: Sequence[float], n: int) -> tuple[float, ...]:
        correct, loss, *counts = sums
        each = len(counts) // 3
        classes = list(zip(counts[:each], counts[each : 2 * each], counts[2 * each :], strict=True))
        figures = {
            F1.key: [2 * right / (own + found) for right, own, found in classes if own + found],
            BALANCED.key: [right / own for right, own, _ in classes if own],
        }
        return (correct / n, loss / n, *(fmean(figures[metric.key]) for metric in self.metric.beside))

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
