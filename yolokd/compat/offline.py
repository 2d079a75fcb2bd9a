"""Keep Ultralytics from fetching what only its own plots need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def no_font_download() -> Iterator[None]:
    """Let Ultralytics do without Arial.ttf, which each check of a data YAML otherwise fetches.

    Ultralytics asks for the font with a 3 second timeout each time, online it downloads it. Only its plots use it,
    and they fall back to Pillow's own font.
    """
    with mock.patch("ultralytics.data.utils.check_font"), mock.patch("ultralytics.utils.plotting.check_font"):
        yield
