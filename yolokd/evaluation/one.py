"""``python -m yolokd.evaluation.one FOLDER ARM SEED``: one run of a comparison, in a process of its own.

Trains, judges and writes ``FOLDER/ARM/seedSEED/result.json``; ``ARM`` may be ``teacher``, which is judged alone.
Further words, from `yolokd.evaluation.children`: ``device=``, ``cores=`` and ``attached``.

Nothing heavy is imported before the process knows its cores: libraries count them when they are loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from yolokd.errors import UserError
from yolokd.evaluation.children import ATTACHED


def main(words: Sequence[str]) -> int:
    """Do one run.

    Args:
        words: folder, arm, seed, and the further words.

    Returns:
        0, or 2 for a mistake that two lines on stderr explain.
    """
    folder, arm, seed, *more = words
    said = dict(word.split("=", 1) for word in more if "=" in word)
    if ATTACHED in more:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    with confined([int(core) for core in said["cores"].split(",")] if "cores" in said else []):
        from yolokd.evaluation.comparison import TEACHER, Comparison
        from yolokd.evaluation.running import judge_teacher, run_once

        try:
            comparison = Comparison.load(Path(folder))
            if said.get("device"):
                comparison.settings["device"] = said["device"]
            if arm == TEACHER:
                judge_teacher(comparison)
            else:
                run_once(comparison, comparison.arm(arm), int(seed))
        except UserError as error:
            print(f"{error.problem}\n{error.remedy}", file=sys.stderr)
            return 2
    return 0


@contextlib.contextmanager
def confined(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and every thread it will start, to some cores.

    Ultralytics trains on the CPU with ``os.cpu_count() - 1`` threads, at most 8: it leaves a core to the rest of the
    machine. Here the rest has cores of its own, so it is told of one more than there are.

    Args:
        cores: empty leaves everything as it is.
    """
    if not cores:
        yield
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    with mock.patch.object(os, "cpu_count", return_value=len(cores) + 1):
        yield


def _end_with_parent() -> None:
    """Wait for standard input to be closed, which the death of the parent does too; then end all of this at once.

    A run can be taken up from whatever a kill leaves, so nothing is tidied.
    """
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
