"""A real Triton has the series that the dashboard uses, under the names and with the labels it looks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import series

if TYPE_CHECKING:
    from triton_server.serverprocess import Server


@pytest.mark.parametrize("name", series.TRITON)
def test_triton_exports_what_is_used_of_it(name: str, server: Server) -> None:
    text = server.ask("/metrics", port=server.metrics_port).body.decode()
    (labels, *_) = re.findall(rf"^{name}{{(.*)}} ", text, re.MULTILINE)
    assert series.TRITON[name] <= set(re.findall(r'(\w+)="', labels))
