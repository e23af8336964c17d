import numpy as np
import numpy.typing as npt

def find_homeless(
    items: npt.NDArray[np.uint64],
    guard: npt.NDArray[np.uint64],
    free: npt.NDArray[np.uint64],
    eligible: npt.NDArray[np.uint8],
    chosen: npt.NDArray[np.int32],
) -> int: ...
def first_fit(
    items: npt.NDArray[np.uint64],
    guard: npt.NDArray[np.uint64],
    free: npt.NDArray[np.uint64],
    eligible: npt.NDArray[np.uint8],
    order: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.int32],
) -> int: ...
def fill_bins(
    items: npt.NDArray[np.uint64],
    guard: npt.NDArray[np.uint64],
    free: npt.NDArray[np.uint64],
    eligible: npt.NDArray[np.uint8],
    shares: npt.NDArray[np.int64],
    room: npt.NDArray[np.int64],
    weight: npt.NDArray[np.int64],
    nearest: bool,
    steps: int,
    chosen: npt.NDArray[np.int32],
) -> int: ...
def place_rest(
    items: npt.NDArray[np.uint64],
    guard: npt.NDArray[np.uint64],
    free: npt.NDArray[np.uint64],
    eligible: npt.NDArray[np.uint8],
    size: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int32],
    steps: int,
    seed: int,
) -> int: ...
