"""How many bytes of broken uploads are free."""

from __future__ import annotations

from proxy.limits.retries import FREE_FILES, HOUR, MOST_REMEMBERED, RetryAllowance
from tests.support.clock import MovableClock


def test_repeated_answers_are_free_up_to_a_number_of_bytes_per_user_and_hour() -> None:
    clock = MovableClock()
    allowance = RetryAllowance(clock)
    assert [allowance.charge("acme", "ann", 100, 100) for _ in range(FREE_FILES)] == [0] * FREE_FILES
    assert allowance.charge("acme", "ann", 70, 100) == 70
    assert allowance.charge("acme", "ben", FREE_FILES * 100 + 1, 100) == 1
    assert allowance.charge("globex", "ann", 100, 100) == 0
    clock.advance(HOUR)
    assert allowance.charge("acme", "ann", 100, 100) == 0


def test_the_table_of_lost_bytes_is_bounded_however_many_users_it_has() -> None:
    allowance = RetryAllowance(MovableClock())
    for number in range(2 * MOST_REMEMBERED):
        allowance.charge("acme", f"user {number}", 1, 100)
    assert len(allowance._lost) == MOST_REMEMBERED
