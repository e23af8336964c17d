"""Who waits for a placement: a fair queue over projects, and the refused with what would help them.

**Pure**: data structures that are changed in place; time is an argument. The placer (placer.py) owns them.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import NodeView, Request, Room

RETRY_S: Final = 15.0  # a first refusal is looked at again, should a hint have been lost
RETRY_MAX_S: Final = 240.0  # 10,000 refused ones cost 40 looks a second at most
LOOKS_MAX: Final = (
    4_000  # (node, shape) pairs that are looked at for a gain, some 20 ms; beyond it all are woken
)


class FairQueue:
    """Uids in turn by project, within a project in order of arrival.

    However many one project asks for, each other project's next one is among the next few taken.
    """

    def __init__(self) -> None:
        self._projects: dict[str, OrderedDict[str, None]] = {}
        self._turns: deque[str] = deque()  # projects with something waiting
        self._project_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._project_of)

    def __contains__(self, uid: str) -> bool:
        return uid in self._project_of

    def add(self, uid: str, project: str) -> None:
        """Last of its project; one that waits already keeps its place."""
        if uid not in self._project_of:
            self._lane(project)[uid] = None
            self._project_of[uid] = project

    def add_first(self, uid: str, project: str) -> None:
        """First of its project: it was taken and could not be placed."""
        self.add(uid, project)
        lane = self._projects[self._project_of[uid]]
        lane.move_to_end(uid, last=False)

    def discard(self, uid: str) -> None:
        project = self._project_of.pop(uid, None)
        if project is not None:
            del self._projects[project][uid]  # an empty lane goes at its next turn

    def take(self, limit: int) -> list[str]:
        """Up to `limit` uids, one of each project in turn."""
        taken: list[str] = []
        while self._turns and len(taken) < limit:
            project = self._turns.popleft()
            lane = self._projects[project]
            if lane:
                uid, _ = lane.popitem(last=False)
                del self._project_of[uid]
                taken.append(uid)
            if lane:
                self._turns.append(project)
            else:
                del self._projects[project]
        return taken

    def _lane(self, project: str) -> OrderedDict[str, None]:
        lane = self._projects.get(project)
        if lane is None:
            lane = self._projects[project] = OrderedDict()
            self._turns.append(project)
        return lane


@dataclass(slots=True)
class _Refused:
    request: Request
    retry_at: float


class RefusedBook:
    """Requests that fitted nowhere, by what they ask for, until a node could take them or time has passed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._by_shape: dict[Hashable, OrderedDict[str, _Refused]] = {}
        self._shape_of: dict[str, Hashable] = {}
        self._attempts: dict[str, int] = {}  # refusals so far; kept while it is tried again
        self._timers: list[tuple[float, str]] = []  # a heap; entries of what is gone are passed over

    def __len__(self) -> int:
        return len(self._shape_of)

    def __contains__(self, uid: str) -> bool:
        return uid in self._shape_of

    def add(self, request: Request, now: float) -> None:
        """Refused (again): tried in twice the time of the last time, unless it is woken before."""
        self._remove(request.uid)
        attempts = self._attempts.get(request.uid, 0)
        self._attempts[request.uid] = attempts + 1
        delay_s = min(RETRY_S * 2.0 ** min(attempts, 10), RETRY_MAX_S) * self._rng.uniform(0.9, 1.1)
        shape = shape_of(request)
        self._by_shape.setdefault(shape, OrderedDict())[request.uid] = _Refused(request, now + delay_s)
        self._shape_of[request.uid] = shape
        heapq.heappush(self._timers, (now + delay_s, request.uid))

    def forget(self, uid: str) -> None:
        """It is placed, gone, or another request now."""
        if self._attempts.pop(uid, None) is not None:
            self._remove(uid)

    def take(self, uid: str) -> None:
        """It is tried again; its refusals so far count on."""
        self._remove(uid)

    def next_due(self) -> float | None:
        """When the next one's time has passed."""
        while self._timers and not self._is_current(*self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def wake_due(self, now: float) -> list[str]:
        """Take out those whose time has passed."""
        due: list[str] = []
        while (at := self.next_due()) is not None and at <= now:
            due.append(heapq.heappop(self._timers)[1])
            self._remove(due[-1])
        return due

    def wake_fitting(self, gained: Iterable[NodeView], occupancy: Occupancy) -> list[str]:
        """Take out those that nodes with new room could take: of each shape as many as would fit there."""
        nodes = list(gained)
        if len(nodes) * len(self._by_shape) > LOOKS_MAX:
            return self.wake_all()
        woken: list[str] = []
        for node in nodes:
            room = Room(node)
            for waiting in list(self._by_shape.values()):
                request = next(iter(waiting.values())).request
                if not reasons_against(room, request, occupancy):
                    woken += self._take(waiting, _times(room.free, request))
        return woken

    def wake_all(self) -> list[str]:
        """Take out everyone."""
        woken = list(self._shape_of)
        for uid in woken:
            self._remove(uid)
        return woken

    def _take(self, waiting: OrderedDict[str, _Refused], count: int) -> list[str]:
        """The first few, and whole gangs: one member alone is never placed."""
        taken = list(waiting)[:count]
        gangs = {gang.name for uid in taken if (gang := waiting[uid].request.gang) is not None}
        if gangs:
            taken += [
                uid
                for uid, one in list(waiting.items())[count:]
                if one.request.gang is not None and one.request.gang.name in gangs
            ]
        for uid in taken:
            self._remove(uid)
        return taken

    def _is_current(self, at: float, uid: str) -> bool:
        shape = self._shape_of.get(uid)
        return shape is not None and self._by_shape[shape][uid].retry_at == at

    def _remove(self, uid: str) -> None:
        shape = self._shape_of.pop(uid, None)
        if shape is not None:
            waiting = self._by_shape[shape]
            del waiting[uid]
            if not waiting:
                del self._by_shape[shape]


def shape_of(request: Request) -> Hashable:
    """Requests of one shape fit the same nodes."""
    return (
        request.constraints(),
        request.resources,
        request.groups,
        request.numa_cells,
        request.devices,
        request.gang,
    )


def _times(free: Mapping[str, int], request: Request) -> int:
    """How often it fits by amounts; a request for nothing once."""
    wants = [(name, want) for name, want in request.resources.as_dict().items() if want]
    return min((free.get(name, 0) // want for name, want in wants), default=1)
