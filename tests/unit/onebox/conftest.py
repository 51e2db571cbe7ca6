"""Make hack/onebox importable: it is a program beside the project, not one of its packages."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "hack" / "onebox"))
