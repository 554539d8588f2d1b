"""`python -m tests.detection.patterns`: every pattern that our packages compile when they are imported, as JSON.

In a process of its own, because imports that have happened already compile nothing. Modules that cannot be imported
for want of torch are left out.
"""

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "daemon", "detection", "persistence")

found: list[dict[str, Any]] = []
compile_it = re._compiler.compile  # type: ignore[attr-defined]  # what re.compile, re.match... call


def noting(pattern: Any, flags: int = 0) -> Any:
    if (where := _place()) and isinstance(pattern, str | bytes):
        text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
        found.append({"where": where, "text": text, "bytes": isinstance(pattern, bytes), "flags": int(flags)})
    return compile_it(pattern, flags)


def _place() -> str:
    """The line of ours that compiles; "" when a library does."""
    frame = sys._getframe(2)
    while frame.f_back and Path(frame.f_code.co_filename).parent.name == "re":
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
    return f"{path.relative_to(ROOT)}:{frame.f_lineno}" if ours else ""


def main() -> None:
    re._compiler.compile = noting  # type: ignore[attr-defined]
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as exc:
                if exc.name != "torch":
                    raise
    print(json.dumps(found))


if __name__ == "__main__":
    main()
