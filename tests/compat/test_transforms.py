"""Each transform of an augmentation gets the class that also moves what goes along, or is refused by name."""

from __future__ import annotations

import pytest
from ultralytics.data.augment import (
    Albumentations,
    BaseTransform,
    Compose,
    LetterBox,
    MixUp,
    RandomFlip,
    RandomHSV,
)

from yolokd.compat.transforms import exchange
from yolokd.errors import UserError


class Flip(RandomFlip):  # type: ignore[misc]
    pass


class Box(LetterBox):  # type: ignore[misc]
    pass


class Mixed(MixUp):  # type: ignore[misc]
    pass


FOLLOWERS: dict[type, type] = {RandomFlip: Flip, LetterBox: Box}


def follow(transform: BaseTransform) -> None:
    exchange(transform, FOLLOWERS, "apply_image", "Nothing can follow", "Leave it out.")


def test_steps_in_steps_and_before_steps() -> None:
    before, flip, colours = LetterBox(), RandomFlip(), RandomHSV()
    mix = MixUp([], pre_transform=before)
    followers = FOLLOWERS | {MixUp: Mixed}
    for _ in range(2):  # the second time finds all of them exchanged
        exchange(Compose([mix, Compose([flip]), colours]), followers, "apply_image", "", "")
        assert [type(step) for step in (mix, before, flip, colours)] == [Mixed, Box, Flip, RandomHSV]


def test_the_refusal_names_what_cannot_be_followed() -> None:
    with pytest.raises(UserError, match=r"Nothing can follow the augmentation MixUp\.") as error:
        follow(Compose([MixUp([])]))
    assert error.value.remedy == "Leave it out."
    albumentations = Albumentations(p=0.0)
    albumentations.transform = None  # as where the package is missing
    follow(albumentations)
    albumentations.transform, albumentations.contains_spatial = (lambda **given: given), True
    with pytest.raises(UserError, match="Albumentations"):
        follow(albumentations)


def test_a_transform_without_the_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LetterBox, "apply_image")
    with pytest.raises(UserError, match="LetterBox"):
        follow(LetterBox())
