"""The largest weight of a layer over the root mean square of its weights, of each cell's final networks.

    python tests/benchmarks/weight_range.py runs/cause

Mean over layers (weights of two dimensions and more), then over seeds; 1.73 is a uniform distribution. Networks are
those that the finals kept (`best.safetensors`), which no archive holds.
"""

import json
import statistics
import sys
from pathlib import Path

from safetensors.torch import load_file


def ratio(path: Path) -> float:
    """max|w| / sqrt(mean w^2), the mean over layers."""
    weights = [w for name, w in load_file(path).items() if name.endswith("weight") and w.dim() > 1]
    return statistics.mean(float(w.abs().max() / w.square().mean().sqrt()) for w in weights)


def main(sweep: Path) -> None:
    """Print a line for each cell."""
    for cell in json.loads((sweep / "cells.json").read_text(encoding="utf-8"))["cells"]:
        kept = [sweep / "runs" / run / "best.safetensors" for run in cell["finals"].values()]
        found = [ratio(path) for path in kept if path.exists()]
        if found:
            print(f"{statistics.mean(found):6.2f}  n = {len(found)}  {cell['id']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
