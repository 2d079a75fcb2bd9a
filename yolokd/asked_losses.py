"""What ``losses=`` and ``NAME.OPTION=`` say."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from yolokd.keys import known_keys, loss_pairs
from yolokd.values import Problems, like


def asked_losses(ours: Mapping[str, Any], problems: Problems) -> dict[str, float]:
    """Loss name to gain, in the order asked for; the default where nothing is said, empty for ``none``."""
    from yolokd.losses.base import DEFAULT_LOSSES, LOSSES

    if "losses" not in ours:
        return dict(DEFAULT_LOSSES)
    try:
        asked = loss_pairs(ours["losses"])
    except ValueError as error:
        problems.add(str(error), "Write losses=NAME:GAIN,NAME:GAIN, e.g. losses=cls:0.5,box:1.5,cwd:1.")
        return {}
    gains: dict[str, float] = {}
    for name, gain in asked.items():
        gains[name] = math.nan  # never seen: a problem is added wherever it stays
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            problems.add(f"{name!r} is not a loss", f"{hint}The losses are {', '.join(LOSSES)}.")
        elif gain is None:
            gains[name] = LOSSES[name].gain
        elif isinstance(gain, bool) or not isinstance(gain, (int, float)) or not math.isfinite(gain):
            problems.add(f"the gain of {name} is not a number: {gain}", "A gain is a positive number, e.g. cls:0.5.")
        elif gain < 0:
            problems.add(f"the gain of {name} is negative: {gain:g}", "A gain is a positive number, e.g. cls:0.5.")
        elif gain == 0:
            problems.add(f"the gain of {name} is zero throughout", f"Leave {name} out of losses=, or give it a gain.")
        else:
            gains[name] = float(gain)
    return gains


def asked_options(
    ours: Mapping[str, Any], losses: Mapping[str, float], problems: Problems
) -> dict[str, dict[str, Any]]:
    """Loss name to the options that were set."""
    from yolokd.losses.base import LOSSES

    chosen: dict[str, dict[str, Any]] = {}
    for key in (key for key in ours if "." in key):
        name, _, option = key.partition(".")
        if name not in LOSSES:
            near = difflib.get_close_matches(key, known_keys(), 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            problems.add(f"{key}: {name!r} is not a loss", f"{hint}The losses are {', '.join(LOSSES)}.")
        elif option not in LOSSES[name].options:
            known = ", ".join(LOSSES[name].options) or "none"
            problems.add(f"{name} has no option {option!r}", f"The options of {name}: {known}.")
        elif name not in losses:
            problems.add(f"{key} is set, but {name} is not among the losses", f"Add {name} to losses=, or drop {key}.")
        else:
            default = LOSSES[name].options[option]
            try:
                chosen.setdefault(name, {})[option] = like(default, ours[key])
            except ValueError:
                kind = type(default).__name__
                problems.add(f"{key}={ours[key]} is not a {kind}", f"The default is {key}={default}.")
    return chosen
