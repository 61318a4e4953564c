"""Delivers alerts: to each receiver in order, and one at a time in all processes.

A receiver that does not take an alert gets it again later, at growing intervals for about a day; then it is a dead
letter. Later alerts wait behind it. Receivers do not wait for each other. An alert is sent twice if a process ends
before it has recorded that the receiver took it, or if a receiver answers too late; both have the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from functools import partial

from proxy.alerts.receivers import Receivers
from proxy.alerts.webhooks import Refused, WebhookSender
from proxy.clock import Clock, to_iso
from proxy.errors import ProxyError
from proxy.limits.accounts import window_start
from proxy.recurring import Recurring
from proxy.stores.alerts import Alert, alert_id
from proxy.stores.deliveries import DeliveryStore, Held

#: How often a process looks for what waits.
LOOK_SECONDS = 2.0
#: Seconds until a receiver is asked again, by how often it has failed in a row; chance makes them so much longer.
PAUSES, MOST_JITTER = (5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0), 0.25
#: How long an alert waits until its last attempt. With these pauses there are up to 14.
GIVE_UP_SECONDS = 86_400.0
#: Receivers that one process sends to at once. None has its turn for longer, while others wait.
MOST_AT_ONCE, TURN_SECONDS = 50, 5.0
#: How long no other process sends: longer than one attempt can take.
CLAIM_SECONDS = 60.0
MOST_PROBLEM_CHARS = 200
#: How long a receiver fails before the operator gets an alert, which is one a day.
FAILING_SECONDS, FAILING_KIND = 1800.0, "delivery.failing"
_log = logging.getLogger(__name__)


class AlertDelivery:
    """Sends what waits, from `start` to `close`.

    Args:
        count: is given `sent`, `failed` or `dead`, and how many.
        note_oldest: is given how long the oldest alert has waited, in seconds.
    """

    def __init__(
        self,
        store: DeliveryStore,
        receivers: Receivers,
        sender: WebhookSender,
        clock: Clock,
        count: Callable[[str, int], None],
        note_oldest: Callable[[float], None],
    ) -> None:
        self._store = store
        self._receivers = receivers
        self._sender = sender
        self._clock = clock
        self._count = count
        self._note_oldest = note_oldest
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._failing: list[Alert] = []
        # Replicas that started together do not look together.
        self._running = Recurring("alert delivery", self.run_once, lambda: LOOK_SECONDS * random.uniform(0.5, 1.0))

    def start(self) -> None:
        """Begin to deliver, until `close`."""
        self._running.start()

    async def close(self) -> None:
        await self._running.close()
        turns = list(self._turns.values())
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)

    def take(self) -> list[Alert]:
        """Give an alert for each receiver that has failed for long, since this was last asked."""
        failing, self._failing = self._failing, []
        return failing

    async def run_once(self) -> None:
        """Begin a turn of each receiver that is due.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        now, busy = self._clock.now(), (*self._turns, *self._receivers.not_here)
        queues = await self._store.look(now, MOST_AT_ONCE - len(self._turns), without=busy)
        self._note_oldest(0.0 if queues.oldest is None else max(0.0, now - queues.oldest))
        for receiver in queues.due:
            turn = asyncio.create_task(self._take_turn(receiver))
            self._turns[receiver] = turn
            turn.add_done_callback(partial(self._end_turn, receiver))

    async def wait(self) -> None:
        """Wait until the turns that have begun are over."""
        await asyncio.gather(*self._turns.values())

    def _end_turn(self, receiver: str, _turn: asyncio.Task[None]) -> None:
        self._turns.pop(receiver, None)

    async def _take_turn(self, receiver: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN_SECONDS
        try:
            while loop.time() < end and await self._deliver_next(receiver):
                pass
        except ProxyError as problem:
            _log.warning("alert delivery postponed", extra={"log_fields": {"problem": problem.code}})
        except Exception:
            _log.exception("alert delivery failed")

    async def _deliver_next(self, receiver: str) -> bool:
        """Deliver the oldest alert of a receiver; False if there is none or the receiver fails."""
        now = self._clock.now()
        held = await self._store.claim(receiver, secrets.token_hex(16), now, now + CLAIM_SECONDS)
        if held is None:
            return False
        try:
            target = await self._receivers.find(receiver)
            if target is None:
                return await self._drop(receiver)
            await self._sender.send(target, held.alert)
        except Refused as problem:
            return await self._note_failure(held, str(problem), is_final=problem.is_final)
        except ValueError as problem:
            return await self._note_failure(held, str(problem))
        if await self._store.record_sent(held, self._clock.now()):
            self._count("sent", 1)
        return True

    async def _drop(self, receiver: str) -> bool:
        self._count("dead", await self._store.drop_waiting(receiver, self._clock.now(), "the tenant has no webhook"))
        return False

    async def _note_failure(self, held: Held, problem: str, *, is_final: bool = False) -> bool:
        now, shown = self._clock.now(), problem[:MOST_PROBLEM_CHARS]
        pause = PAUSES[min(held.failures, len(PAUSES) - 1)] * random.uniform(1.0, 1.0 + MOST_JITTER)
        give_up = now if is_final else now - GIVE_UP_SECONDS
        self._count("failed", 1)
        dead = await self._store.record_failed(held, now, shown, now + pause, give_up)
        self._count("dead", dead)
        if held.failing_since is not None and now - held.failing_since >= FAILING_SECONDS:
            self._failing.append(_describe_failure(held, now, shown))
        fields = {"receiver": held.receiver or "operator", "id": held.alert.id, "problem": shown, "dead": dead}
        _log.warning("alert not delivered", extra={"log_fields": {**fields, "again_in": round(pause)}})
        return False


def _describe_failure(held: Held, now: float, problem: str) -> Alert:
    """Compose an alert for the operator alone: the receiver that fails would not get it."""
    whose = {"receiver": "tenant" if held.receiver else "operator", "receiver_tenant": held.receiver or None}
    details = {**whose, "failing_since": to_iso(held.failing_since or now), "problem": problem}
    id_ = alert_id(FAILING_KIND, "", held.receiver, window_start("day", now))
    return Alert(id_, FAILING_KIND, "", now, details=details)
