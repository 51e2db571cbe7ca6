"""Tables of model types, of which a step needs one entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Entry = TypeVar("Entry")


class Table(Mapping[str, Entry]):
    """Makes an entry when it is asked for: each names classes that transformers reads in only then, and all of them
    together take a second.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Entry]]) -> None:
        self._makers = makers

    @override
    def __getitem__(self, kind: str) -> Entry:
        return self._makers[kind]()

    @override
    def __contains__(self, kind: object) -> bool:
        return kind in self._makers

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    @override
    def __len__(self) -> int:
        return len(self._makers)
