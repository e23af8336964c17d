from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from cext.cells import Cells
from cext.places import Places
from cext.state import FleetState

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

class Seating(Places, Generic[C]):
    cells: Cells
    def __init__(
        self,
        index: FleetState,
        cells: Cells,
        new_choice: Callable[[tuple[int, ...]], C],
        nothing: C,
        soft_penalty: int,
    ) -> None: ...
    def find(
        self,
        asked: Asked,
        names: tuple[str, ...],
        excluded: Collection[int] = (),
        among: Collection[int] | None = None,
    ) -> Seat[C] | None: ...
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
