"""Progress bars of several trainings in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import ultralytics.engine.trainer as engine
from ultralytics.utils import TQDM

_COLUMN = "{:>12.12}"  # wide enough for "1-yolov10n-x"; Ultralytics' own columns have 11
_WIPE = "\r\033[K"  # what a bar has left unfinished in the line


class _Bar(TQDM):  # type: ignore[misc]
    """A bar that says whose it is; of several that are open the newest is live, the others show how they end."""

    opened: ClassVar[list[_Bar]] = []
    headed: ClassVar[bool] = False  # there is a header above those that are open, or about to open

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._whose = _COLUMN.format(threading.current_thread().name)
        self.opened.append(self)
        super().__init__(*args, **kwargs)

    def set_description(self, desc: str | None) -> None:
        """Ultralytics' own, after the name of the training."""
        super().set_description(f"{self._whose}{desc or ''}")

    def _display(self, final: bool = False) -> None:
        if final or self.opened[-1:] == [self]:
            super()._display(final)

    def close(self) -> None:
        """Ultralytics' own; the end is shown even where it was, since another bar may have written over it."""
        if self in self.opened:
            self.opened.remove(self)
            _Bar.headed = bool(self.opened)
            self.last_print_n = -1
        super().close()


@contextmanager
def side_by_side() -> Iterator[None]:
    """Let the trainings that run meanwhile, each in a thread that bears its name, share the line of a progress bar."""
    with mock.patch.object(engine, "TQDM", _Bar):
        try:
            yield
        finally:
            _Bar.opened.clear()
            _Bar.headed = False


def headed(columns: str) -> str:
    """A header of Ultralytics' progress bar with a column for the name; a wiped line where it stands there already.

    Args:
        columns: the header, which begins with a line break.
    """
    if _Bar.headed:
        return _WIPE
    _Bar.headed = True
    return "\n" + _COLUMN.format("Peer") + columns.lstrip("\n")
