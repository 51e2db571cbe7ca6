"""`override` for modules that must run on the standard library of Python 3.11, which lacks it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.version_info >= (3, 12):
    from typing import override
elif TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):  # noqa: ANN001, ANN201  the type checker reads the branch above
        return method


__all__ = ["override"]
