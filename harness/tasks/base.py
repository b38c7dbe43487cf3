"""The interface of a task: one file with one `Task` subclass. A data set names its task, a model those that it serves.

A task's file imports torch inside its functions: names, directions and units are asked for where torch is not loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from harness.core import outside, registry
from harness.core.errors import UserError, nearest, unknown
from harness.core.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data._samples import TaskData

#: Of data that is not named yet.
DEFAULT = "classification"


class Task:
    """What a batch is, the loss of one, and what is measured on a split.

    Inputs and targets are tensors whose first dimension counts samples; outputs are the network's, in fp32.
    metric: what epochs, trials and methods are compared by. further: figures that can be measured beside it where
    `deploy.figures` names them. smooths_labels: whether `train.label_smoothing` means anything; `loss` then takes it.
    free_dimensions: names of the dimensions of a batch of inputs that may have other sizes in an exported graph, None
    for one that is fixed. baseline: the name of what does the task without training, if there is such a thing; records
    have rows of it, with this name as the deploy method.
    """

    metric: ClassVar[Metric]
    further: ClassVar[tuple[Metric, ...]] = ()
    smooths_labels: ClassVar[bool] = False
    free_dimensions: ClassVar[tuple[str | None, ...]] = ("batch",)
    baseline: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The file's name without .py."""
        return type(self).__module__.rpartition(".")[2]

    def measuring(self, figures: Sequence[str]) -> "Task":
        """The task with some of its further figures beside its metric, by key. Raises UserError for others."""
        legal = {each.key: each for each in self.further}
        for key in figures:
            if key not in legal:
                what = ", ".join(legal) or f"none: the task {self.name} has no further ones"
                raise UserError(f"deploy.figures: unknown figure {key!r}{nearest(key, legal)} (legal: {what})")
        return _measuring(self, tuple(dict.fromkeys(figures))) if figures else self

    def loss(self, outputs: "Tensor", targets: "Tensor", label_smoothing: float = 0.0) -> "Tensor":
        """What training minimises: the mean over a batch, shape ()."""
        raise NotImplementedError

    def summed(self, outputs: "Tensor", targets: "Tensor", inputs: "Tensor") -> "Tensor":
        """What a batch adds to the sums of a split, float64 (k,). `results` makes figures of the sums.

        inputs: for figures that depend on more than outputs and targets.
        """
        raise NotImplementedError

    def right(self, outputs: "Tensor", targets: "Tensor") -> "Tensor | None":
        """Which samples of a batch are right, bool (N,). None, unless each sample is either right or wrong."""
        return None

    def counted(self, targets: "Tensor") -> int:
        """How many of a row's `n` a batch is: samples, unless a task counts parts of them."""
        return len(targets)

    def results(self, sums: Sequence[float], n: int) -> tuple[float, ...]:
        """The metric, the loss, then the figures beside the metric, from a split's sums: by default their means."""
        return tuple(each / n for each in sums)

    def distillation(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """The loss against another network's outputs, shape (); it gets no gradient. By default they are targets."""
        return self.loss(outputs, teacher.detach())

    def divergence(self, outputs: "Tensor", teacher: "Tensor") -> "Tensor":
        """The same, less what is left of it where both are equal."""
        return self.distillation(outputs, teacher)

    def baseline_network(self, outputs: int) -> "nn.Module":
        """What `baseline` names, where it depends on `TaskData.outputs` alone."""
        raise NotImplementedError

    def baseline_for(self, data: "TaskData") -> "nn.Module":
        """What `baseline` names, on the device of the data; it may be made from their training split.

        By default it is the same for all data of as many outputs.
        """
        return self.baseline_network(data.outputs)

    def example_inputs(self, count: int, shape: Sequence[int]) -> "Tensor":
        """Random inputs, always the same: float32 (count, *shape) in [0, 1], unless a task has others."""
        import torch

        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))

    def example_targets(self, inputs: "Tensor", outputs: int) -> "Tensor":
        """Targets, of the right shape and dtype, for such inputs. outputs: see `TaskData.outputs`."""
        raise NotImplementedError


@cache
def _measuring(task: Task, figures: tuple[str, ...]) -> Task:
    """A task like another one, and of its name, whose metric has figures beside it."""
    chosen = tuple(each for each in task.further if each.key in figures)
    metric = replace(task.metric, beside=(*task.metric.beside, *chosen))
    kind = type(task)
    return type(kind.__name__, (kind,), {"metric": metric, "__module__": kind.__module__})()


@cache
def find(name: str) -> Task:
    """The task in `tasks/<name>.py`, or one from outside. Raises UserError for any other, or not exactly one Task."""
    found = registry.load("task", name)
    of_file = isinstance(found, ModuleType)
    own = [item for item in (vars(found).values() if of_file else [found]) if _is_task(item)]
    own = [item for item in own if not of_file or item.__module__ == found.__name__]
    if len(own) != 1:
        place = outside.get("task", name).path if outside.is_name(name) else f"harness/tasks/{name}.py"
        raise UserError(f"{place} must define one Task subclass, not {len(own)}")
    if outside.is_name(name):
        return type(own[0].__name__, (own[0],), {"name": registry.shown(name)})()
    return own[0]()


def _is_task(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, Task) and item is not Task


def task_of(data: Mapping[str, Any], further: Sequence[str] = ()) -> Task:
    """The task of a data section, `{name: digits, ...}`, by what its file states. Imports no torch.

    further: tasks from outside, which it may state, too.
    """
    return _task_of_data(str(data["name"]), tuple(further))


@cache
def _task_of_data(name: str, further: tuple[str, ...] = ()) -> Task:
    found = registry.load("data set", name)
    task = getattr(getattr(found, "Config", None), "task", DEFAULT)  # a callable gives images of classes
    own = {registry.shown(each): each for each in further}
    if task not in own and task not in registry.names("task"):
        legal = [*registry.names("task"), *own]
        advice = "" if not outside.is_name(name) else "; name its file, too: base.tasks: [FILE.py]"
        raise UserError(f"data set {registry.shown(name)!r}: {unknown('task', task, legal)}{advice}")
    return find(own.get(task, task))


def task_of_run(config: Mapping[str, Any]) -> Task:
    """The task of a run's plain configuration, with the further figures that it asks for."""
    task = task_of(config["data"], config.get("tasks") or ())
    return task.measuring(config.get("deploy", {}).get("figures", ()))
