"""What every model, data set and task must do."""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness import data
from harness.conformance.common import require, require_same, trained_in_rounding
from harness.core.errors import UserError
from harness.core.outside import shown
from harness.data import Augment, Dataset, Raw, Split
from harness.data._samples import TaskData
from harness.models import build_model
from harness.quantization.audit import audit
from harness.quantization.layers import weight_layers
from harness.tasks.base import find as find_task
from harness.training.build import build
from harness.training.config import complete, component
from harness.training.loop import train
from harness.training.optimizer import make_optimizer
from harness.training.session import Session

#: (C, H, W) of images that a network is tried on, the first that it can be built for.
SHAPES = ((1, 8, 8), (3, 32, 32))
CLASSES = 10
_IMAGES = 60


def _of_model(settings: dict[str, Any]) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network and the images that it takes. Raises UserError where it takes none of SHAPES."""
    config, refusals = component("model", settings), []
    if "classification" not in config.tasks:
        raise UserError(f"model {shown(config.name)!r}: only classifiers are checked; it serves {config.tasks}")
    for shape in SHAPES:
        try:
            network = build_model(config, shape, CLASSES, seed=0)
            network(torch.rand(2, *shape))
            return network, shape
        except Exception as error:
            refusals.append(f"{shape}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    raise UserError(f"model {shown(config.name)!r} takes images of none of these shapes: {'; '.join(refusals)}")


def its_weights_depend_on_the_seed_alone(settings: dict[str, Any]) -> None:
    """And building it uses up no random number of anything else."""
    _, shape = _of_model(settings)
    config = component("model", settings)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_model(config, shape, CLASSES, seed=0)
    require(torch.equal(torch.get_rng_state(), before), "building it changes torch's random state")
    torch.rand(3)
    again, other = build_model(config, shape, CLASSES, seed=0), build_model(config, shape, CLASSES, seed=1)
    require_same(dict(again.state_dict()), dict(one.state_dict()), "built twice with one seed: weights")
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    require(any(not torch.equal(a, b) for a, b in pairs), "another seed gives the same weights")


def its_outputs_are_one_row_of_logits_an_image(settings: dict[str, Any]) -> None:
    """Finite and, in evaluation mode, the same whatever else is in the batch."""
    network, shape = _of_model(settings)
    images = torch.rand(4, *shape)
    with torch.no_grad():
        outputs = network.eval()(images)
        require(tuple(outputs.shape) == (4, CLASSES), f"outputs {tuple(outputs.shape)}, not (4, {CLASSES})")
        require(outputs.isfinite().all(), "outputs must be finite; some are not")
        alone = network(images[:1])
    torch.testing.assert_close(alone, outputs[:1], rtol=1e-4, atol=1e-5)


def every_weight_is_accounted_for(settings: dict[str, Any]) -> None:
    """No weight is multiplied where no quantizer reaches it; the table of `harness.audit` otherwise."""
    network, shape = _of_model(settings)
    audit(network, torch.rand(2, *shape), ()).check()
    require(weight_layers(_session(settings).model), "it has no linear or 2-d convolution layer to quantize")


def it_trains_and_deploys(settings: dict[str, Any]) -> None:
    """Four steps of float training and of QAT at 3 bits; then at 2 to 8 bits, and with activations at 8."""
    for methods in (["none"], [trained_in_rounding()]):
        session = _session(settings, methods)
        before = {name: value.clone() for name, value in session.model.named_parameters()}
        train(session, lambda metrics: None)
        after = dict(session.model.named_parameters())
        require(
            all(value.isfinite().all() for value in after.values()), f"{methods}: weights must be finite; some are not"
        )
        require(any(not torch.equal(after[name], value) for name, value in before.items()), f"{methods}: none moved")
        for bits in range(2, 9):
            for name, layer in weight_layers(session.evaluator.deployed(session.model, bits)).items():
                values = len(layer.weight.unique())
                require(values <= 2**bits, f"layer {name} at {bits} bits has {values} values")
        outputs = session.evaluator.deployed(session.model, "w4a8")(_dataset(session.dataset.input_shape).test_images())
        require(outputs.isfinite().all(), "at w4a8 outputs must be finite; some are not")


class _Random(Dataset):
    def test_images(self) -> Tensor:
        return self.batch(self.test, slice(0, 4))[0]


def _dataset(shape: tuple[int, ...]) -> _Random:
    """Random images with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES, *shape), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(_IMAGES) % CLASSES)
    mean, std = torch.zeros(shape[0]), torch.ones(shape[0])
    names = tuple(map(str, range(CLASSES)))
    return _Random(split, split, split, names, 255, mean, std, Augment(), digest="random")


def _session(settings: dict[str, Any], methods: list[str] | None = None) -> Session:
    """A run of four steps on random images, ready to train."""
    _, shape = _of_model(settings)
    config = complete(
        {
            "methods": methods or ["none"],
            "target_bit": 3,
            "model": settings,
            "data": {"name": "digits"},
            "train": {"epochs": 2, "batch_size": 30, "learning_rate": 1e-3, "precision": "fp32"},
            "activations": {"calibration_batches": 2},
            "deploy": {"bits": [2, 3], "scale": "recalibrate"},
            "runtime": {"device": "cpu", "wandb": "off"},
        }
    )
    session = build(config, stand_in=_dataset(shape))
    return replace(session, optimizer=make_optimizer(config.train, session.model, session.methods))


def its_settings_go_through_json(kind: str, settings: dict[str, Any]) -> None:
    """They survive being written to a record."""
    config = component(kind, settings)
    again = component(kind, json.loads(json.dumps(config.model_dump(mode="json"))))
    require(again == config and again.identity() == config.identity(), "read back from JSON, its settings are others")


def it_is_read_the_same_each_time(settings: dict[str, Any]) -> None:
    """The same pixels and labels; whatever the seed, which only draws the validation split."""
    config = component("data set", settings)
    data.check(config)
    one, again, other = (data.load_dataset(config, seed, "cpu") for seed in (0, 0, 1))
    require(one.digest == again.digest == other.digest, "read again, its digest is another")
    require_same(_some(again), _some(one), "loaded twice with one seed: batch")
    sizes = [[len(split) for split in (each.train, each.val, each.test)] for each in (one, other)]
    require(sizes[0] == sizes[1], f"its splits have {sizes[0]} samples with seed 0 and {sizes[1]} with seed 1")
    require(all(sizes[0]), f"no split may be empty; train, val, test have {sizes[0]} samples")
    require_same(_unscaled(other), _unscaled(one), "another seed: test split")


def _unscaled(loaded: TaskData) -> Any:
    """The first of the test split. Images of classes as they were read: the training split decides their scale."""
    if isinstance(loaded, Dataset):
        return loaded.test.images[:16], loaded.test.labels[:16]
    return next(iter(loaded.batches(loaded.test, 16)))


def its_shape_is_that_of_its_batches(settings: dict[str, Any]) -> None:
    """What `shape` says is what comes; inputs are finite float32."""
    config = component("data set", settings)
    loaded = data.load_dataset(config, 0, "cpu")
    inputs, targets = _some(loaded)
    require(inputs.dtype == torch.float32 and inputs.isfinite().all(), f"inputs {inputs.dtype}, not finite float32")
    require(len(inputs) == len(targets), f"{len(inputs)} inputs and {len(targets)} targets in a batch")
    require(tuple(inputs.shape[1:]) == tuple(loaded.input_shape), "batches have another shape than input_shape")
    said = data.shape(config)
    there = (tuple(loaded.input_shape), loaded.outputs)
    require((tuple(said[0]), said[1]) == there, f"shape(config) says {said}, and {there} comes")


def its_images_and_labels_are_legal(settings: dict[str, Any]) -> None:
    """Of classes of images: uint8 (N, C, H, W) up to max_value, int64 labels, every class in the training split."""
    config = component("data set", settings)
    data.check(config)
    module = data.find(config.name)
    if not hasattr(module, "read"):
        return
    raw = module.read(config)
    require(isinstance(raw, Raw), f"it must give a harness.data.Raw; found a {type(raw).__name__}")
    for name, split in (("train", raw.train), ("val", raw.val), ("test", raw.test)):
        if split is not None or name != "val":
            _check_split(name, split, raw.max_value)
    raw.check_labels(config.name)
    there, classes = set(raw.train.labels.tolist()), len(raw.class_names)
    require(len(there) == classes, f"train: each of the {classes} classes must have images; {len(there)} have some")


def _check_split(name: str, split: Any, max_value: int) -> None:
    require(isinstance(split, Split), f"{name}: must be a harness.data.Split; found a {type(split).__name__}")
    images, labels = split.images, split.labels
    legal = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.dim() == 4
    require(legal, f"{name}: images must be uint8 (N, C, H, W); found {_kind(images)}")
    samples = len(images) if split.rows is None else len(split.rows)
    legal = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (samples,)
    require(legal, f"{name}: labels must be int64 (N,), one an image; found {_kind(labels)} for {samples} images")
    require(samples, f"{name}: no split may be empty")
    highest = int(images.max())
    require(highest <= max_value, f"{name}: pixels must be 0 to {max_value}, max_value; found {highest}")


def _kind(value: Any) -> str:
    """`torch.uint8 (60, 1, 8, 8)`."""
    return f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else f"a {type(value).__name__}"


def _some(loaded: TaskData) -> tuple[Tensor, Tensor]:
    count = min(8, len(loaded.train))
    return loaded.train_batch(torch.arange(count, device=loaded.device))


def its_loss_has_a_gradient(task: str) -> None:
    """A finite scalar, on its own example inputs and targets."""
    found, (outputs, targets, _) = find_task(task), _example(task)
    loss = found.loss(outputs, targets)
    require(loss.dim() == 0 and loss.isfinite(), f"loss is {loss}, not a finite scalar")
    (gradient,) = torch.autograd.grad(loss, outputs)
    require(gradient.isfinite().all() and gradient.abs().sum() > 0, "its gradient is zero or not finite")


def sums_of_batches_are_those_of_the_split(task: str) -> None:
    """`summed` of parts adds up to `summed` of all, and `results` are legal."""
    found, (outputs, targets, inputs) = find_task(task), _example(task)
    with torch.no_grad():
        whole = found.summed(outputs, targets, inputs)
        parts = sum(
            found.summed(o, t, i) for o, t, i in zip(outputs.split(2), targets.split(2), inputs.split(2), strict=True)
        )
    require(whole.dtype == torch.float64, f"summed gives {whole.dtype}, not float64")
    torch.testing.assert_close(torch.as_tensor(parts), whole, rtol=1e-5, atol=1e-6)
    figures = found.results(whole.tolist(), found.counted(targets))
    require(len(figures) == 2 + len(found.metric.beside), "results: the metric, the loss, then the figures beside it")
    found.metric.check(figures[0])


def what_is_equal_does_not_diverge(task: str) -> None:
    """`divergence` is least where outputs are the teacher's."""
    found, (outputs, _, _) = find_task(task), _example(task)
    with torch.no_grad():
        same, other = found.divergence(outputs, outputs), found.divergence(outputs, outputs + torch.randn_like(outputs))
    require(float(same) <= float(other), f"divergence from equal outputs is {float(same)}, from others {float(other)}")


def _example(task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of some network, targets and inputs, of four samples."""
    found = find_task(task)
    inputs = found.example_inputs(4, (3, 8, 8))
    targets = found.example_targets(inputs, 2)
    generator = torch.Generator().manual_seed(0)
    shape = targets.shape if targets.is_floating_point() else (len(targets), 2)
    start = targets if targets.is_floating_point() else torch.zeros(shape)
    return (start + torch.randn(shape, generator=generator)).requires_grad_(), targets, inputs
