import numpy as np
import numpy.typing as npt

def best_fit(
    free: npt.NDArray[np.int64],
    demand: npt.NDArray[np.int64],
    eligible: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float64],
    start: int,
) -> int: ...
def place_batch(
    free: npt.NDArray[np.int64],
    demands: npt.NDArray[np.int64],
    eligible: npt.NDArray[np.uint8],
    eligible_row: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float64],
    start: int,
    chosen: npt.NDArray[np.int64],
) -> None: ...
