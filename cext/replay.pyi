import numpy as np
import numpy.typing as npt

class Replay:
    def __init__(
        self,
        capacity: npt.NDArray[np.int64],
        demand: npt.NDArray[np.int64],
        n_node: int,
        rule: str,
        ties_by_node: bool = False,
    ) -> None: ...
    @property
    def nodes_in_use(self) -> int: ...
    @property
    def class_count(self) -> int: ...
    def allocated_amounts(self) -> npt.NDArray[np.int64]: ...
    def free_amounts(self) -> npt.NDArray[np.int64]: ...
    def set_slots(
        self,
        typical: npt.NDArray[np.int64],
        weight: npt.NDArray[np.int64],
        lean: int,
        empty_last: int,
        lean_idle: int = 0,
        idle: int = 0,
    ) -> None: ...
    def set_extension(self, weight: int, limit: int) -> None: ...
    def run(
        self,
        events: npt.NDArray[np.int32],
        shape_of: npt.NDArray[np.int32],
        node_of: npt.NDArray[np.int32],
        in_use: npt.NDArray[np.int32],
        stop_at_failure: bool = False,
        start: npt.NDArray[np.int64] | None = None,
        end: npt.NDArray[np.int64] | None = None,
    ) -> int: ...
