from yolokd.errors import UserError


def test_two_lines() -> None:
    error = UserError("What is wrong.", "What to do.")
    assert str(error) == "What is wrong.\nWhat to do."
    assert (error.problem, error.remedy) == ("What is wrong.", "What to do.")
