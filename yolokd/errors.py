"""Errors for people: what is wrong, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; the command line prints it and exits with code 2.

    Args:
        problem: what is wrong, one line, with the offending value in it.
        remedy: what to do about it, one line.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy
