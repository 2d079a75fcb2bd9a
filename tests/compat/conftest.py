"""Images for the replayed boxes: labelled by boxes, and by polygons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.replays import make_images


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def polygons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("polygons"), polygons=True)
