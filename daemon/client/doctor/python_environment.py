"""A Python environment, as its files describe it: interpreter, packages, constraints. Nothing is imported from it."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """A Python environment; `prefix` is its directory, None for that of this process."""

    prefix: Path | None

    @classmethod
    def at(cls, prefix: str | None) -> "Environment":
        """The environment at `prefix`; that of this process for None or the same directory."""
        ours = prefix is None or os.path.realpath(prefix) == os.path.realpath(sys.prefix)
        return cls(None if ours or prefix is None else Path(prefix))

    @property
    def place(self) -> str:
        return str(self.prefix or sys.prefix)

    def same_as(self, other: "Environment") -> bool:
        return os.path.realpath(self.place) == os.path.realpath(other.place)

    @cached_property
    def python(self) -> str | None:
        """The version of its interpreter, None if unknown."""
        if self.prefix is None:
            return ".".join(map(str, sys.version_info[:3]))
        try:
            text = (self.prefix / "pyvenv.cfg").read_text()
        except FileNotFoundError:
            return None
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", text, re.MULTILINE)
        return found[1] if found else None

    @cached_property
    def packages(self) -> Mapping[str, Distribution]:
        """The installed packages by normalised name; the first of two counts, as for an import."""
        path = sys.path if self.prefix is None else [str(each) for each in self._package_folders()]
        found: dict[str, Distribution] = {}
        for each in distributions(path=path):
            # A folder that pip left half removed has no name.
            if name := each.metadata["Name"]:
                found.setdefault(normalised_package_name(name), each)
        return found

    def _package_folders(self) -> Iterator[Path]:
        assert self.prefix is not None
        for folder in sorted(self.prefix.glob("lib/python3*/site-packages")):
            yield folder
            for link in sorted(folder.glob("*.pth")):
                lines = link.read_text(errors="replace").splitlines()
                yield from (Path(line) for line in lines if line.startswith("/"))

    def constraints(self) -> dict[str, str]:
        """The package versions that this release was tested with; empty if constraints.txt is not found."""
        beside = [
            self.prefix or Path(sys.prefix),
            (self.prefix or Path(sys.prefix)) / "share/vigild",
            *([Path(__file__).parents[3]] if self.prefix is None else []),
        ]
        for folder in beside:
            try:
                lines = (folder / "constraints.txt").read_text().splitlines()
            except (FileNotFoundError, NotADirectoryError):
                continue
            pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
            return {normalised_package_name(name): version.strip() for name, _, version in pairs}
        return {}


def normalised_package_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()
