"""Named sub-seeds: what a random draw may depend on is said where it is drawn."""

import hashlib

#: The streams of a run. Two methods with the same seed share `init`, `split`, `order` and `augment`.
STREAMS = ("init", "split", "order", "augment", "forward", "method", "calibration")


def sub_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) from a run's seed and the names of what is drawn (stream, epoch, step)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
