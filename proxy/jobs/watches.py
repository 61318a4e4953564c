"""The jobs that this process follows, and how many of them are one tenant's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from proxy.jobs.watch import Watch

#: Jobs followed at once; polls of more than these go to fal one by one.
MOST_WATCHES = 10_000


def watches_per_tenant(tenants: int) -> int:
    """Return how many jobs of a tenant a process follows for its polls, among so many tenants: one leaves room."""
    return MOST_WATCHES if tenants < 2 else MOST_WATCHES // 2


class Watches:
    """Watches by fal's id of their job.

    Event streams are bounded by themselves; what polls follow is bounded here, for the process and for each tenant.
    """

    def __init__(self, most: int, most_per_tenant: Callable[[], int]) -> None:
        self._most = most
        self._most_per_tenant = most_per_tenant
        self._by_id: dict[str, Watch] = {}
        self._by_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._by_id

    def get(self, id_: str) -> Watch | None:
        return self._by_id.get(id_)

    def list_all(self) -> list[Watch]:
        return list(self._by_id.values())

    def has_room(self, tenant: str) -> bool:
        """Return whether one more job of a tenant may be followed for its polls."""
        return len(self._by_id) < self._most and self._by_tenant[tenant] < self._most_per_tenant()

    def add(self, id_: str, watch: Watch) -> None:
        self._by_id[id_] = watch
        self._by_tenant[watch.job.tenant] += 1

    def remove(self, id_: str, watch: Watch) -> None:
        """Forget a watch, unless another one has taken its place."""
        if self._by_id.get(id_) is not watch:
            return
        del self._by_id[id_]
        tenant = watch.job.tenant
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
