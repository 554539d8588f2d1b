"""A pytest plugin (`-p tests.interpreters.without_torch`): who imports torch is skipped, be it a test, a fixture or a
whole module. For environments that have no torch; everything that runs there is shown to need none."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pytest


class _Refusing(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] == "torch":
            pytest.skip("needs torch", allow_module_level=True)


sys.meta_path.insert(0, _Refusing())
