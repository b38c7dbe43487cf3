"""What counting gives: an order-2 model of characters on a text data set, in bits per character.

    python tests/benchmarks/count_model.py [--run RUN_DIR | --data NAME]

The next token is predicted from the two before it, by counts of the training split, smoothed towards shorter contexts:

    p(c)    = (n(c) + 1) / (N + V)
    p(c|b)  = (n(bc) + k p(c)) / (n(b) + k)
    p(c|ab) = (n(abc) + m p(c|b)) / (n(ab) + m)

k and m are those of 2^-4 to 2^14 with the fewest bits on the validation split. Every token but the first is predicted,
as in the evaluation of a run; --run prints the float rows of a finished one beside.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import load_dataset
from harness.records.files import read_json
from harness.training.config import component

STRENGTHS = [2.0**power for power in range(-4, 15)]


class CountModel:
    """Counts of single tokens, pairs and triples of a text, int (L,), with `size` different tokens."""

    def __init__(self, tokens: np.ndarray, size: int) -> None:
        self.size = size
        self.single = np.bincount(tokens, minlength=size)
        self.pair = np.bincount(_joined(tokens, 2, size), minlength=size**2).reshape(size, size)
        self.triple = np.bincount(_joined(tokens, 3, size), minlength=size**3).reshape(size, size, size)

    def bits(self, tokens: np.ndarray, k: float, m: float) -> float:
        """Bits per token of a text, of all but its first."""
        shortest = (self.single + 1) / (self.single.sum() + self.size)
        middle = (self.pair + k * shortest) / (self.pair.sum(1, keepdims=True) + k)
        a, b, c = tokens[:-2], tokens[1:-1], tokens[2:]
        longest = (self.triple[a, b, c] + m * middle[b, c]) / (self.triple.sum(2)[a, b] + m)
        nats = -np.log(middle[tokens[0], tokens[1]]) - np.log(longest).sum()
        return float(nats / math.log(2) / (len(tokens) - 1))


def _joined(tokens: np.ndarray, order: int, size: int) -> np.ndarray:
    """One number for each run of `order` tokens."""
    runs = np.lib.stride_tricks.sliding_window_view(tokens, order)
    return runs @ size ** np.arange(order - 1, -1, -1)


def measured(data: Any) -> dict[str, float]:
    """Bits per token of val and test, and the strengths that were chosen."""
    train, val, test = (getattr(data, split).tokens.numpy().astype(np.int64) for split in ("train", "val", "test"))
    model = CountModel(train, data.outputs)
    best, k, m = min((model.bits(val, k, m), k, m) for k in STRENGTHS for m in STRENGTHS)
    return {"val": best, "test": model.bits(test, k, m), "k": k, "m": m}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="An order-2 count model on a text data set.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", type=Path, metavar="RUN_DIR", help="a finished run, whose data it takes")
    which.add_argument("--data", default="python_stdlib", metavar="NAME")
    options = parser.parse_args(arguments)
    record = read_json(options.run / "record.json") if options.run else None
    data = load_dataset(component("data set", record["config"]["data"] if record else {"name": options.data}), 0, "cpu")
    found = measured(data)
    print(
        f"counts: val {found['val']:.3f}, test {found['test']:.3f} bits per character (k {found['k']}, m {found['m']})"
    )
    for row in record["rows"] if record else ():
        if row["bits"] == "float":
            print(f"network in float: {row['split']} {row['score']:.3f} bits per character")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
