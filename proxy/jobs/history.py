"""The latest updates of a job, in which a reader finds its place."""

from __future__ import annotations

from typing import Any

from proxy.jobs.updates import Log, Update

#: Updates that a reader may lag behind before those between are left out.
MOST_LAG = 32


class History:
    """The updates of a job in their order, known by their number; old ones are let go.

    Attributes:
        count: how many there were, those that were let go included.
        latest: the last one.
    """

    __slots__ = ("_log", "_recent", "count", "latest")

    def __init__(self) -> None:
        self._log = Log()
        self._recent: list[Update] = []
        self.count = 0
        self.latest: Update | None = None

    def after(self, number: int) -> tuple[int, Update]:
        """Return the update after the one with this number, and its own number: the latest if that one was let go."""
        number = number + 1 if self.count - number <= len(self._recent) else self.count
        return number, self._recent[number - self.count - 1]

    def place_of(self, mark: str | None) -> tuple[int, int]:
        """Return the number of the update with a mark, and the lines that its reader has.

        For an unknown mark, this is the last update but one, and as many lines as the mark says.
        """
        if mark is None:
            return self.count - 1, 0
        first = self.count - len(self._recent) + 1
        for number, update in reversed(list(enumerate(self._recent, first))):
            if update.mark == mark:
                return number, update.lines
        return self.count - 1, int(mark.rpartition(".")[2])

    def add(self, update: Update) -> None:
        self._recent = [*self._recent[1 - MOST_LAG :], update]
        self.count += 1
        self.latest = update

    def take(self, endpoint: str, document: dict[str, Any], *, has_gap: bool) -> bool:
        """Take up what fal says of the job, and return whether that is news.

        Args:
            document: its log lines are moved into the log.
            has_gap: whether earlier lines were missed; then these are left out, as they would be out of order.
        """
        if isinstance(document.get("logs"), list):
            self._log.add(() if has_gap else document["logs"])
            document["logs"] = []
        latest, known = self.latest, 0
        if latest is not None:
            if latest.document == document and latest.lines == len(self._log):
                return False
            latest.forget_whole_log()
            known = latest.lines
        self.add(Update(endpoint, document, self._log, len(self._log), known))
        return True
