"""Put the repository root on the path: `analysis` is run from there, not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
