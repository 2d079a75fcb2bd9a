"""``yolokd MODE key=value ...``: parse, call one function of the API, print, exit code."""

from __future__ import annotations

import difflib
import inspect
import linecache
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd import help as texts
from yolokd.errors import UserError
from yolokd.keys import OUR_KEYS, known_keys, refuse_native, refuse_unknown, with_recipe

_HELP = ("help", "-h", "-help", "--help")
_VERSION = ("version", "-v", "--version")
# Keys that `none` switches off, which a recipe may have switched on.
_SWITCHED_OFF = ("losses", "balance", "taps", "guard", "robustness")
# Bare words that mean True although their default in Ultralytics is None or stands nowhere.
_FLAGS = ("half", "int8", "end2end", "nms", "trust")
# Where Ultralytics raises on purpose when the person at the keyboard made a mistake.
_CHECKING = ("ultralytics.cfg", "ultralytics.data", "ultralytics.engine", "ultralytics.utils")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``yolokd``; those of this process where None.

    Returns:
        0, or 1 where an export failed, 2 for a mistake that two lines on stderr explain, or 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    pairs: dict[str, Any] = {}
    started = time.time()
    try:
        if _answered(words):
            return 0
        mode = _mode(words)
        # A report has one argument, which is no key.
        rest = [f"folder={word}" if mode == "report" and "=" not in word else word for word in words[1:]]
        pairs |= parse(rest)
        return _COMMANDS[mode](pairs) or 0
    except UserError as error:
        return _fail(error.problem, error.remedy)
    except BrokenPipeError:  # the reader, `| head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its own exit
        return 0
    except KeyboardInterrupt as error:
        print(str(error) or _stopped(words, pairs, started), file=sys.stderr)
        return 130
    except Exception as error:
        if not _raised_on_purpose(error):
            raise
        return _fail(f"Ultralytics refuses this: {error}", "`yolo cfg` prints its keys with their types and meaning.")


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words by Ultralytics' grammar.

    Spaces around ``=``, leading dashes and trailing commas are forgiven; a value becomes a number, a list, True, False
    or None where it reads like one; a boolean key may stand alone.

    Raises:
        UserError: a key without value, or a bare word that no boolean key is called.
    """
    from ultralytics.cfg import merge_equals_args, parse_key_value_pair
    from ultralytics.utils import DEFAULT_CFG_DICT

    try:
        merged = merge_equals_args(list(words))
    except SyntaxError as error:
        raise UserError(str(error), "Close each [ with a ].") from None
    pairs: dict[str, Any] = {}
    for word in (word.lstrip("-").rstrip(",") for word in merged):
        if "=" in word:
            try:
                key, value = parse_key_value_pair(word)
            except AssertionError:
                raise UserError(f"{word} has no value.", "Write key=value without spaces in the value.") from None
            # The grammar reads `none` as None, which Python callers use for "not given".
            pairs[key] = "none" if key in _SWITCHED_OFF and value is None else value
        elif isinstance(DEFAULT_CFG_DICT.get(word), bool) or word in _FLAGS:
            pairs[word] = True
        elif word in DEFAULT_CFG_DICT or word in OUR_KEYS:
            raise UserError(f"{word} needs a value.", f"Write {word}=VALUE; `yolokd train --help` says what it means.")
        else:
            refuse_unknown([word], known_keys())
            raise UserError(f"{word} is not key=value.", "Write key=value, e.g. epochs=100.")
    return pairs


def _answered(words: Sequence[str]) -> bool:
    """Print what is asked about yolokd itself, without loading torch where possible."""
    asked = [word for word in words if word.lower() in _HELP]
    topics = [word for word in words if word in texts.MODES]
    if not words or (asked and not topics):
        print(texts.overview())
    elif asked:
        print(texts.of_mode(topics[0]))
    elif words[0] in _VERSION:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"yolokd {version('yolokd')}, ultralytics {version('ultralytics')}, torch {version('torch')}")
        except PackageNotFoundError as error:
            raise UserError(f"{error}", "Install yolokd with pip, e.g. pip install -e . in its folder.") from None
    else:
        return False
    return True


def _mode(words: Sequence[str]) -> str:
    if words[0] in texts.MODES:
        return words[0]
    near = difflib.get_close_matches(words[0], texts.MODES, 1)
    remedy = f"Did you mean yolokd {near[0]}? " if near else ""
    raise UserError(f"{words[0]!r} is not a mode of yolokd.", f"{remedy}The modes are {', '.join(texts.MODES)}.")


def _train(pairs: dict[str, Any]) -> None:
    from yolokd import api

    refuse_unknown([key for key in pairs if "." not in key], known_keys())
    refuse_native(pairs, typed=True)
    run = api.distill(**pairs)
    print(f"The {'best peer' if run.peers else 'distilled student'}: {run.best}")


def _val(pairs: dict[str, Any]) -> None:
    from yolokd import api

    print(api.evaluate(**_accepted(api.evaluate, pairs, "val", ("model", "data"))))


def _export(pairs: dict[str, Any]) -> int:
    from yolokd import api

    table, rows = api.export(**_accepted(api.export, pairs, "export", ("model", "format")))
    print(table)
    return 1 if any(row.failure for row in rows) or (rows and all(row.missing for row in rows)) else 0


def _checks(pairs: dict[str, Any]) -> None:
    if not pairs:
        from ultralytics.utils.checks import collect_system_info

        collect_system_info()
        return
    from yolokd import api

    refuse_native(pairs, typed=True)
    pairs = with_recipe(pairs)
    refuse_unknown([key for key in pairs if "." not in key], known_keys())
    if "model" in pairs:
        pairs["student"] = pairs.pop("model")
    _need(pairs, "checks", ("teacher", "student", *([] if "student_classes" in pairs else ["data"])))
    print(api.check(**pairs))


def _cache(pairs: dict[str, Any]) -> None:
    from yolokd import api

    refuse_unknown(pairs, known_keys())
    _need(pairs, "cache", ("teacher", "data"))
    print(api.cache(**pairs))


def _compare(pairs: dict[str, Any]) -> int:
    from yolokd import api

    done = api.compare(**pairs)
    print(done)
    return 1 if done.failed else 0


def _report(pairs: dict[str, Any]) -> None:
    from yolokd import api

    refuse_unknown(pairs, ["folder"])
    if not pairs.get("folder"):
        example = f"For example: {texts.MODES['report'][2][0]}"
        raise UserError("yolokd report needs the folder of a comparison, or of a run.", example)
    print(api.report(**pairs))


def _losses(pairs: dict[str, Any]) -> None:
    refuse_unknown(pairs, [])
    print(texts.losses_table())


def _demo(pairs: dict[str, Any]) -> None:
    from yolokd import api
    from yolokd.demo import run_demo

    refuse_unknown(pairs, inspect.signature(run_demo).parameters)
    print(api.demo(**pairs))


_COMMANDS: dict[str, Callable[[dict[str, Any]], int | None]] = {
    "train": _train,
    "val": _val,
    "export": _export,
    "checks": _checks,
    "cache": _cache,
    "compare": _compare,
    "report": _report,
    "losses": _losses,
    "demo": _demo,
}


def _accepted(
    function: Callable[..., Any], pairs: Mapping[str, Any], mode: str, needed: Iterable[str]
) -> dict[str, Any]:
    """Check the keys of a mode against the function that serves it, and Ultralytics' keys beside."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    refuse_unknown(pairs, [*own, "trust", *DEFAULT_CFG_DICT])
    _need(pairs, mode, needed)
    return dict(pairs)


def _need(pairs: Mapping[str, Any], mode: str, needed: Iterable[str]) -> None:
    if missing := [f"{key}=" for key in needed if pairs.get(key) is None]:
        raise UserError(f"yolokd {mode} needs {' and '.join(missing)}.", f"For example: {texts.MODES[mode][2][0]}")


def _fail(problem: str, remedy: str) -> int:
    for line in (problem, remedy):
        print(" ".join(line.replace("❌", "").split()), file=sys.stderr)
    return 2


def _raised_on_purpose(error: Exception) -> bool:
    """Did a check of Ultralytics raise this with words for people, rather than something fall over?"""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_CHECKING):
        return False
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return bool(str(error)) and line.startswith(("raise ", "assert "))


def _stopped(words: Sequence[str], pairs: Mapping[str, Any], started: float) -> str:
    """One line that says how to go on after Ctrl-C."""
    if words and words[0] == "cache":
        return "Stopped. The same command goes on; at most a minute's answers are lost."
    if not words or words[0] != "train":
        return "Stopped."
    if not hasattr(sys.modules.get("ultralytics.utils"), "SETTINGS"):  # stopped while torch was being loaded
        return "Stopped before the run began."
    if isinstance(pairs.get("resume"), str):
        return f"Stopped. Go on with: yolokd train resume={pairs['resume']}"
    last = _newest_run(pairs, started)
    return f"Stopped. Go on with: yolokd train resume={last}" if last else "Stopped before the run began."


def _newest_run(pairs: Mapping[str, Any], started: float) -> Path | None:
    """What to resume: ``last.pt`` of the run that was begun since, there already or not, or the folder of a chain."""
    from ultralytics.utils import SETTINGS

    project = Path(str(pairs.get("project") or ""))
    root = project if project.is_absolute() else Path(SETTINGS["runs_dir"]) / "detect" / project
    began = [*root.glob("**/distill.yaml"), *root.glob("**/chain.yaml")]
    began = [file for file in began if file.stat().st_mtime >= started - 1]
    if not began:
        return None
    folder = max(began, key=lambda file: file.stat().st_mtime).parent
    chains = [place for place in (folder, folder.parent) if (place / "chain.yaml").is_file()]
    return chains[0] if chains else folder / "weights" / "last.pt"
