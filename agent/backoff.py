"""Growing, jittered waits between attempts to reach a controller.

**Pure** given the source of randomness.
"""

from __future__ import annotations

import random
from typing import Final

# A leader is elected within 1 to 2 s (machine.md), so the first tries are quick.
FIRST_S: Final = 0.5
# Bounds how long a cloud that is back has to wait for its last node.
MAX_S: Final = 10.0


class Backoff:
    """Waits of full jitter, so that a thousand agents do not come back in the same second."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._attempts = 0

    def reset(self) -> None:
        self._attempts = 0

    def next_s(self) -> float:
        """The next wait: between a tenth of and the whole of a bound that doubles."""
        bound = min(MAX_S, FIRST_S * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        return bound * self._rng.uniform(0.1, 1.0)
