"""Put the repository root on the path, since `analysis` is run from there, and the benchmarks, which write sweeps."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/benchmarks")]
