"""What holds for all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# What the tests' helpers assert says what it found, as in the tests themselves.
pytest.register_assert_rewrite("e2e", "faults", "integration", "pages", "triton_server", "unit")

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("onnx-operator", deadline=None)
settings.load_profile("onnx-operator")
