"""Several trainings in one process that take turns: one at a time, always the one that is furthest behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Place: TypeAlias = tuple[int, float]  # how far a training has come: the epoch, from 0, and where in it
_START: Place = (-2, 0.0)
_LOOK = 0.2  # seconds; a wait without end would keep Ctrl-C out on Windows


class Stopped(BaseException):
    """Raised in a training that ends because another one failed, or a person has stopped all of them.

    No `Exception`: a training that goes on after errors is not to go on after this.
    """


@dataclass(frozen=True)
class Streams:
    """The state of the global random number generators: Python's, NumPy's, and torch's on the CPU and one GPU."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> Streams:
        """As they are."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Let them go on from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


class Turns:
    """The baton of several trainings, each in a thread of its own.

    Threads, since a training loop that is not ours cannot be left in the middle otherwise. Only one of them ever runs,
    and each has the global random numbers to itself: what one draws does not depend on the others, nor on the order.

    Args:
        names: of the trainings; the first of those that are equally far goes first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._places: dict[str, Place] = dict.fromkeys(names, _START)
        self._streams: dict[str, Streams] = {}
        self._change = threading.Condition()
        self._error: BaseException | None = None

    def keep_streams(self, name: str) -> None:
        """Let a training that has not begun yet draw its random numbers from here on."""
        self._streams[name] = Streams.now()

    def run(self, works: Mapping[str, Callable[[], object]]) -> None:
        """Run all to their end; an error in one, or Ctrl-C, ends all at their next hand-over.

        Args:
            works: name to training; `keep_streams` has been called for each.

        Raises:
            BaseException: the first that one of them raised, or that this thread was interrupted with.
        """
        threads = [threading.Thread(target=self._run, args=work, name=work[0], daemon=True) for work in works.items()]
        for thread in threads:
            thread.start()
        try:
            _join(threads)
        except BaseException as error:
            self._stop(error)
            _join(threads)  # interrupted once more, they are left behind
        if self._error is not None:
            raise self._error

    def wait(self, name: str, place: Place) -> None:
        """Called by a training where others may go on before it.

        Args:
            name: of the training.
            place: how far it has come; it may be set back.

        Raises:
            Stopped: it is to end.
        """
        with self._change:
            self._places[name] = place
            if self._next() != name:
                self._streams[name] = Streams.now()
                self._change.notify_all()
                self._change.wait_for(lambda: self._next() == name)
                self._streams[name].restore()
        self.check()

    def check(self, *_: object) -> None:
        """Called by a training on its long ways; takes any arguments, so that it can be a callback.

        Raises:
            Stopped: it is to end.
        """
        if self._error is not None:
            raise Stopped

    def _next(self) -> str:
        return min(self._places, key=lambda name: self._places[name])

    def _run(self, name: str, work: Callable[[], object]) -> None:
        with self._change:
            self._change.wait_for(lambda: self._next() == name)
        try:
            self.check()
            self._streams[name].restore()
            work()
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for all
            self._stop(error)
        finally:
            with self._change:
                del self._places[name]
                self._change.notify_all()

    def _stop(self, error: BaseException) -> None:
        with self._change:
            self._error = self._error or error


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(_LOOK)
