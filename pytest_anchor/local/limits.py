"""How many sessions may be created in a while."""

from __future__ import annotations

import math
import time

from .errors import Refused

_MINUTE = 60


class RateLimit:
    """At most *quota* creations in a window of *window* seconds, which the first of them opens."""

    def __init__(self, quota: int, window: float) -> None:
        self.quota = quota
        self.window = window
        self._opened = -math.inf
        self._used = 0

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """Read ``QUOTA/SECONDS``.

        :raises ValueError: it is something else.
        """
        quota, _, window = text.partition("/")
        rate = cls(int(quota), float(window))
        if rate.quota < 1 or not 0 < rate.window < math.inf:
            raise ValueError(text)
        return rate

    def admit(self) -> None:
        """Count one creation.

        :raises Refused: 429 with the three headers, the window is full.
        """
        now = time.monotonic()
        if now >= self._opened + self.window:
            self._opened, self._used = now, 0
        if self._used >= self.quota:
            wait = math.ceil(self._opened + self.window - now)
            length = "1min" if self.window == _MINUTE else f"{self.window:g}sec"
            name = f'"{self.quota}-in-{length}"'
            raise Refused(
                429,
                "Session creation rate limit exceeded.",
                {
                    "Retry-After": str(wait),
                    "RateLimit": f"{name}; r=0; t={wait}",
                    "RateLimit-Policy": f"{name}; q={self.quota}; w={self.window:g}; pk=:bG9jYWw=:",
                },
            )
        self._used += 1
