"""Named sub-seeds: each random draw names what it depends on."""

import hashlib


def sub_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) from a run's seed and the names of what is drawn (stream, epoch, step)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
