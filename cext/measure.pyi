from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cext.index import FleetIndex

class Replay(NamedTuple):
    placed: int
    failed: int
    released: int
    first_failure: int  # event, -1 = none
    decision_hash: int
    used: int  # nodes with an instance at the end
    used_peak: int
    elapsed_ns: int

def replay(
    index: FleetIndex,
    events: npt.NDArray[np.int32],
    shape_of: npt.NDArray[np.int32],
    at: npt.NDArray[np.int32],
    *,
    ns: npt.NDArray[np.float32] | None = None,
    used: npt.NDArray[np.int32] | None = None,
    time_s: npt.NDArray[np.int64] | None = None,
    linear: bool = False,
) -> Replay: ...
def time_scans(index: FleetIndex, rounds: int) -> tuple[float, float]: ...
