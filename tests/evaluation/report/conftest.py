from __future__ import annotations

from typing import Any

import pytest
from markupsafe import Markup

from yolokd.evaluation.report import figures
from yolokd.evaluation.report.drawing import Drawing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of which only the text is looked at: a tenth of the time."""

    def draw(key: str, paint: Any, *, alt: str, **_: Any) -> Drawing:
        return Drawing(Markup('<svg role="img" aria-label="{}"></svg>').format(alt))

    monkeypatch.setattr(figures, "draw", draw)
