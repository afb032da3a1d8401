"""What the host does around a compiled loop: a progress bar, a stopwatch, the length of a piece."""

from time import perf_counter
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm


def progress_bar(horizon: float, shown: bool) -> tqdm:
    """A bar over the time from 0 to `horizon`."""
    endless = np.isinf(horizon)
    layout = "t = {n:.4g} [{elapsed}{postfix}]"
    if not endless:
        layout = "{percentage:3.0f}%|{bar}| t = {n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=None if endless else horizon, disable=not shown, bar_format=layout)


def adapted(budget: int, seconds: float) -> int:
    """How many steps to make in the next piece, if `budget` of them took so long."""
    if seconds < 0.1:
        return min(2 * budget, 2**20)
    return max(budget // 2, 1) if seconds > 0.5 else budget


class Stopwatch:
    """Wall time of a block, and the part of it in which JAX traced and compiled."""

    def __init__(self):
        self.seconds = 0.0
        self.compile_seconds = 0.0

    def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compile_seconds += duration_secs

    def __enter__(self):
        self._began = perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        self.seconds += perf_counter() - self._began
        jax.monitoring.unregister_event_duration_listener(self._listen)
