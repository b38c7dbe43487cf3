"""Put the repository root on the path: `analysis` is no installed package, its commands are run from there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
