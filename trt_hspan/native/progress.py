"""How far a build is: nested phases as one rising number, and the request to stop."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """A moment of a build: `fraction` of the work, 0..1, never falling, and the innermost phase under way."""

    fraction: float
    phase: str


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    completed: int = 0


class PhaseTracker:
    """Follows phase_start / step_complete / phase_finish from any thread.

    A phase with n steps divides its parent's current step evenly; the fraction is the outermost phase's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._phase = ""
        self._cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins inside `parent`; None is the outermost."""
        with self._lock:
            self._open[name] = _Phase(name, parent, max(steps, 1))
            self._phase = name
            self._update()

    def step(self, name: str, index: int) -> bool:
        """Step `index` (from 0) is complete. Returns False when the build is to stop."""
        with self._lock:
            phase = self._open.get(name)
            if phase is not None:
                phase.completed = min(max(phase.completed, index + 1), phase.steps)
                self._update()
            return not self._cancelled

    def finish(self, name: str) -> None:
        """A phase ends, whether or not all its steps were reported."""
        with self._lock:
            phase = self._open.get(name)
            if phase is not None:
                phase.completed = phase.steps
                self._update()
                del self._open[name]
                self._phase = phase.parent or name

    def cancel(self) -> None:
        """Makes every further `step` return False."""
        with self._lock:
            self._cancelled = True

    @property
    def progress(self) -> BuildProgress:
        """Where the build is now."""
        with self._lock:
            return BuildProgress(fraction=self._fraction, phase=self._phase)

    def _update(self) -> None:
        roots = [phase for phase in self._open.values() if phase.parent not in self._open]
        self._fraction = max([self._fraction, *map(self._fraction_of, roots)])

    def _fraction_of(self, phase: _Phase) -> float:
        below = [self._fraction_of(child) for child in self._open.values() if child.parent == phase.name]
        return min((phase.completed + max(below, default=0.0)) / phase.steps, 1.0)
