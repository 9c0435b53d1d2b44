"""What all tests share: this folder is on the path, so that helpers are plain modules (`from synthetic import ...`)."""

from __future__ import annotations

import sys
from pathlib import Path

# The importlib import mode leaves sys.path alone, so a helper beside the tests would not be found without this.
sys.path.insert(0, str(Path(__file__).resolve().parent))
