import numpy as np
import numpy.typing as npt

def pair_bound(
    items: npt.NDArray[np.uint64],
    guard: npt.NDArray[np.uint64],
    capacity: npt.NDArray[np.uint64],
    order: npt.NDArray[np.int32],
) -> int: ...
