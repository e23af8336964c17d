"""Uids from a source of random numbers.

**Pure.**
"""

from __future__ import annotations

import random
import uuid

from hypothesis import given
from hypothesis import strategies as st

from cumulet.names import new_uid


@given(st.integers(0, 2**64))
def test_a_uid_is_a_random_uuid_of_its_source(seed: int) -> None:
    expected = uuid.UUID(int=random.Random(seed).getrandbits(128), version=4)
    assert new_uid(random.Random(seed)) == str(expected)
    assert (expected.version, expected.variant) == (4, uuid.RFC_4122)
