"""Every write exactly once per request id.

**Edge**: commits. The record of a request rides in the change's own transaction, under the hour of the
request; a repeated id finds it there and gets the first answer, another content under the same id is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final

from controller.admit.common import Context
from controller.commit import Change
from controller.controller import Controller
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent
from controller.transact import HOUR_S
from cumulet.errors import ConflictError, CumuletError, FieldViolation, InvalidArgumentError
from cumulet.v1 import store_pb2

REQUEST_ID_MAX: Final = 64
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
SKEW_MAX_S: Final = 300  # how far another replica's clock may be ahead, and in the next hour already
ROUNDS: Final = 4  # looks for a first answer between rounds of attempts to commit

Admit = Callable[[State, Context], Change]


async def write_once(
    controller: Controller,
    method: str,
    project: str,
    request: Any,
    admit: Admit,
    uid_of: Callable[[Change], str],
) -> store_pb2.RequestRecord:
    """Commit what `admit` allows, or find what an earlier request with this id committed.

    Raises InvalidArgumentError for a bad or reused id, and whatever `admit` raises.
    """
    request_id = request.request_id
    if not request_id:
        record: store_pb2.RequestRecord = await controller.api_committer.commit(
            lambda state: _with_answer(admit(state, _context(controller)), method, b"", uid_of)
        )
        return record
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgumentError.of(
            "the request was refused",
            [FieldViolation("request_id", f"1 to {REQUEST_ID_MAX} of A-Z a-z 0-9 . _ -")],
        )
    digest = _digest(request)
    scope = project or "-"
    for _ in range(ROUNDS):
        try:
            record = await controller.api_committer.commit(
                lambda state: _recorded(controller, state, admit, method, scope, request_id, digest, uid_of)
            )
            return record
        except CumuletError as error:
            found = await _find_record(controller, scope, request_id)
            if found is not None:
                return _check_same(found, method, digest, request_id)
            if not isinstance(error, ConflictError):
                raise
    raise ConflictError("others kept changing what this change rests on: try again")


def _recorded(
    controller: Controller,
    state: State,
    admit: Admit,
    method: str,
    scope: str,
    request_id: str,
    digest: bytes,
    uid_of: Callable[[Change], str],
) -> Change:
    change = _with_answer(admit(state, _context(controller)), method, digest, uid_of)
    records = _record_keys(controller, scope, request_id)
    change.compares += [absent(key) for key in records]
    change.writes[records[0]] = change.result.SerializeToString()
    return change


def _with_answer(change: Change, method: str, digest: bytes, uid_of: Callable[[Change], str]) -> Change:
    change.result = store_pb2.RequestRecord(
        method=method, digest=digest, uid=uid_of(change), operation=change.result or ""
    )
    return change


def _context(controller: Controller) -> Context:
    return Context(controller.clock.now(), controller.rng)


def _digest(request: Any) -> bytes:
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = ""
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()


def _record_keys(controller: Controller, scope: str, request_id: str) -> list[bytes]:
    """Where the record of a request goes, and where an earlier one may be."""
    hour, second = divmod(int(controller.clock.now()), HOUR_S)
    hours = [hour, hour - 1]
    if second >= HOUR_S - SKEW_MAX_S:
        hours.append(hour + 1)
    return [keys.REQUESTS.key(str(number), scope, request_id) for number in hours]


async def _find_record(controller: Controller, scope: str, request_id: str) -> store_pb2.RequestRecord | None:
    for key in _record_keys(controller, scope, request_id):
        found = await controller.store.get(key)
        if found is not None:
            await controller.state.reach(found.mod_revision)
            return store_pb2.RequestRecord.FromString(found.value)
    return None


def _check_same(
    found: store_pb2.RequestRecord, method: str, digest: bytes, request_id: str
) -> store_pb2.RequestRecord:
    if (found.method, found.digest) != (method, digest):
        raise InvalidArgumentError.of(
            "the request was refused",
            [FieldViolation("request_id", f"{request_id} was used for another request: choose a new one")],
        )
    return found
