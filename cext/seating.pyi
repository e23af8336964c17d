from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from cext.cells import Cells
from cext.groups import Group
from cext.state import FleetState

MASKS_KEPT: int
C = TypeVar("C")

class Asked:
    cells: int
    def __init__(
        self,
        levels: Sequence[tuple[int, int, int, int]],
        cells: int = 0,
        vcpu: int = 0,
        memory_mib: int = 0,
    ) -> None: ...

class Seat(Generic[C]):
    slot: int
    shape: int
    choice: C

class Seating(Generic[C]):
    cells: Cells
    def __init__(
        self,
        index: FleetState,
        cells: Cells,
        new_choice: Callable[[tuple[int, ...]], C],
        nothing: C,
        soft_penalty: int,
    ) -> None: ...
    def set_groups(self, groups: Mapping[str, Group]) -> None: ...
    def count(self, names: tuple[str, ...], slot: int, by: int) -> None: ...
    def admitted(
        self, names: tuple[str, ...], excluded: Collection[int], slots: Iterable[int]
    ) -> list[int]: ...
    def find(
        self,
        asked: Asked,
        names: tuple[str, ...],
        excluded: Collection[int] = (),
        among: Collection[int] | None = None,
    ) -> Seat[C] | None: ...
    def where(
        self, names: tuple[str, ...], given_up: tuple[str, ...], excluded: Collection[int]
    ) -> tuple[Collection[int], Collection[int] | None] | None: ...
    def seat(
        self,
        slot: int,
        shape: int,
        names: tuple[str, ...],
        choice: C,
        cells: tuple[int, ...] = (),
        vcpu: int = 0,
        memory_mib: int = 0,
    ) -> Seat[C]: ...
    def enter(self, seat: Seat[C]) -> None: ...
    def leave(self, seat: Seat[C]) -> None: ...
    def mark(self) -> int: ...
    def rollback(self, mark: int) -> None: ...
    def keep(self, mark: int) -> None: ...
