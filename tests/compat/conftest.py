"""Images for what goes through the augmentation with them: labelled by boxes, by polygons, and their negatives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.replays import make_images
from tests.compat.viewing import negatives


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def polygons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("polygons"), polygons=True)


@pytest.fixture(scope="module")
def partners(polygons: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return negatives(polygons, tmp_path_factory.mktemp("partners") / "set")
