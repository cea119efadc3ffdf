"""The laws of `tests/network/test_devices.py` are run here on a real GPU, so they have to be importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "network"))
