from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import checks

from yolokd.compat.offline import no_font_download


def test_no_font_is_asked_for(toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: asked.append(font))
    check_det_dataset(str(toy_data))
    assert asked == ["Arial.ttf"], "Ultralytics no longer fetches a font here: no_font_download may go"
    with no_font_download():
        check_det_dataset(str(toy_data))
    assert asked == ["Arial.ttf"]


def test_the_check_comes_back_also_after_an_error() -> None:
    from ultralytics.data import utils

    with pytest.raises(RuntimeError), no_font_download():
        raise RuntimeError
    assert utils.check_font is checks.check_font
