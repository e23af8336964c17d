from collections.abc import Collection, Iterable, Mapping

from cext.groups import Group
from cext.state import FleetState

MASKS_KEPT: int

class Places:
    def __init__(self, index: FleetState) -> None: ...
    def set_groups(self, groups: Mapping[str, Group]) -> None: ...
    def count(self, names: tuple[str, ...], slot: int, by: int) -> None: ...
    def admitted(
        self, names: tuple[str, ...], excluded: Collection[int], slots: Iterable[int]
    ) -> list[int]: ...
    def where(
        self, names: tuple[str, ...], given_up: tuple[str, ...], excluded: Collection[int]
    ) -> tuple[Collection[int], Collection[int] | None] | None: ...
