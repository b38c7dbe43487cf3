"""Accuracy with rounded activations: at 8 bits, and at 4 by each way to find a range, on the test split.

    python tests/benchmarks/range_accuracy.py [--seeds 3] [--cifar FOLDER] [--tiny]

Networks are trained in float on digits and rounded with ranges by `max`, `percentile` and `mse`; beside them `lsq`,
trained for w4a4. FOLDER: CIFAR-10 as image files (train/CLASS/*.jpg, test/CLASS/*.jpg), for a quarter-width ResNet-18.
Prints a table in Markdown: means over the seeds, in %. Nothing here is tuned. The page
analysis/results/weights_and_activations.md has it.
"""

import argparse
import dataclasses
import statistics
from typing import Any

from harness.core.config_base import ActivationsConfig
from harness.records import schema
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train
from harness.training.session import Session

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mlp5": ({"name": "mlp5"}, {"epochs": 20}),
    "small ViT": ({"name": "vit_tiny", "width": 32, "depth": 2, "heads": 2, "patch": 4}, {"epochs": 30}),
}
RESNET = ({"name": "resnet18", "width": 16}, {"epochs": 4, "batch_size": 128, "schedule": "cosine"})
RANGES = ("max", "percentile", "mse")
POINTS = ("w8a8", "w4a4")
HEADER = ("network", "float", "w8a8", *(f"w4a4, {kind}" for kind in RANGES), "`lsq` for w4a4")


def trained(model: dict[str, Any], data: dict[str, Any], settings: dict[str, Any], seed: int, target: Any) -> Session:
    """A session with the weights of its best epoch: of `lsq` at a target, else of float training."""
    config = {
        "methods": "none" if target is None else "lsq",
        "target_bit": target,
        "watch_bit": 4,
        "seed": seed,
        "model": model,
        "data": data,
        "train": {"batch_size": 64, "learning_rate": 1e-3, "precision": "fp32", **settings},
        "deploy": {"bits": list(POINTS), "scale": "recalibrate"},
        "runtime": {"wandb": "off", "compile": "off"},
    }
    session = build(complete(config))
    train(session, lambda metrics: None)
    session.model.load_state_dict(session.progress.best_state)
    return session


def accuracies(session: Session, kind: Any) -> dict[str, float]:
    """Test accuracy in % by point, with ranges found in one way."""
    context = dataclasses.replace(session.evaluator.context, activations=ActivationsConfig(range=kind))
    evaluator = dataclasses.replace(session.evaluator, context=context)
    rows = evaluator.rows(session.model, "final", "test")
    return {str(schema.point(row).plain): 100 * row["accuracy"] for row in rows}


def line(
    name: str, model: dict[str, Any], data: dict[str, Any], settings: dict[str, Any], seeds: int
) -> tuple[str, list[float]]:
    """A network's name and its figures in the order of HEADER, means over the seeds."""
    found = []
    for seed in range(seeds):
        plain = trained(model, data, settings, seed, None)
        by_kind = {kind: accuracies(plain, kind) for kind in RANGES}
        lsq = accuracies(trained(model, data, settings, seed, "w4a4"), "mse")
        usual = by_kind["mse"]
        w4a4 = [by_kind[kind]["w4a4"] for kind in RANGES]
        found.append([usual["float"], usual["w8a8"], *w4a4, lsq["w4a4"]])
    return name, [statistics.fmean(column) for column in zip(*found, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cifar", metavar="FOLDER")
    parser.add_argument("--tiny", action="store_true", help="an epoch of a small network: to see that the script runs")
    options = parser.parse_args(arguments)
    jobs = [(name, model, {"name": "digits"}, settings) for name, (model, settings) in NETWORKS.items()]
    if options.tiny:
        jobs = [("mlp5", {"name": "mlp5", "width": 16}, {"name": "digits"}, {"epochs": 1})]
    if options.cifar:
        folder = {"name": "image_folder", "root": options.cifar, "train_fraction": 0.4}
        jobs.append(("quarter ResNet-18", RESNET[0], folder, RESNET[1]))
    print("| " + " | ".join(HEADER) + " |\n|:--" + "|--:" * (len(HEADER) - 1) + "|")
    for job in jobs:
        name, figures = line(*job, options.seeds)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
