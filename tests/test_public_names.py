import importlib
import subprocess
import sys

import pytest

import yolokd


@pytest.mark.parametrize("name", yolokd.__all__)
def test_a_public_name_is_never_a_module_of_the_same_name(name: str) -> None:
    """An imported submodule replaces the package's attribute of its name."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"yolokd.{name}")
    assert getattr(yolokd, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = yolokd.no_such_thing


def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, yolokd; sys.exit('torch' in sys.modules or 'ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
