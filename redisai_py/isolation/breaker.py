"""When to leave alone what fails again and again."""

from __future__ import annotations


class Breaker:
    """After `limit` failures in a row it is open for a while, twice as long after each further one; a success closes it.

    Times are arguments, in seconds of a clock that never goes back.
    """

    __slots__ = ("_failures", "_limit", "_longest", "_until")

    def __init__(self, limit: int = 3, longest: float = 60.0) -> None:
        self._limit = limit
        self._longest = longest
        self._failures = 0
        self._until = 0.0

    @property
    def failures(self) -> int:
        """How many there were since the last success."""
        return self._failures

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._until = now + min(self._longest, 2.0 ** min(self._failures - self._limit, 30))

    def succeeded(self) -> None:
        self._failures = 0
        self._until = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next attempt is allowed; 0 = now."""
        return max(0.0, self._until - now)
