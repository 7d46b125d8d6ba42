"""Tests of this folder share `dataset_makers.py`, which lies beside them and in no package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
