"""The long proofs in parts (tests/faults/parts.py): none is left out, and what is done is not done again."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import parts
from tests.faults.parts import BEGIN, END, Part, Proofs, all_parts, code_now, main, write_table

ROOT = Path(__file__).parents[1]
PASSES = "def test_it(record_property):\n    record_property('kills', 50)\n"
FAILS = "def test_it():\n    assert False\n"
SKIPS = "import pytest\ndef test_it():\n    pytest.skip('no container')\n"


def toy(directory: Path, name: str, code: str) -> Part:
    """A part that notes in `runs` that it ran; with the settings that the real ones are run with."""
    path = directory / f"test_{name.replace('-', '_')}.py"
    path.write_text(f"with open({str(directory / 'runs')!r}, 'a') as runs:\n    runs.write({name + ' '!r})\n{code}")
    settings = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(directory))
    return Part(name, f"about {name}", ("pytest", "-p", "no:cacheprovider", *settings, str(path)))


def test_every_fault_test_is_in_one_part_and_no_round_is_left_out() -> None:
    named = [word for part in all_parts() for word in part.command if word.startswith("tests/faults/")]
    assert len(named) == len(set(named))
    for path in (ROOT / "tests/faults").rglob("test_*.py"):
        relative = str(path.relative_to(ROOT))
        assert any(word.split("::")[0] == relative or relative.startswith(word + "/") for word in named), relative
    rounds = [int(word.split("[")[1][:-1]) for word in named if "random_kills" in word]
    assert rounds == list(range(1000 // 50))
    assert len({part.name for part in all_parts()}) == len(all_parts())


def test_every_format_is_fuzzed_in_one_part() -> None:
    from tests.fuzz.targets import TARGETS

    fuzzed = [word for part in all_parts() if part.group == "fuzz" for word in part.command if "[" in word]
    assert [word.split("[")[1][:-1] for word in fuzzed] == [target.name for target in TARGETS]


def test_what_passed_is_not_run_again_until_the_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ("key", "abc1234")
    monkeypatch.setattr(parts, "code_now", lambda: code)
    toys = [toy(tmp_path, "kills-1", PASSES), toy(tmp_path, "kills-2", PASSES), toy(tmp_path, "soak", FAILS)]
    proofs = Proofs(tmp_path / "place", toys, code)
    assert proofs.run(toys[0])  # and then it is interrupted

    again = Proofs(tmp_path / "place", toys, code)
    assert [part.name for part in again.left()] == ["kills-2", "soak"]
    assert [again.run(part) for part in again.left()] == [True, False]

    once_more = Proofs(tmp_path / "place", toys, code)
    assert [part.name for part in once_more.left()] == ["soak"]
    assert (tmp_path / "runs").read_text().split() == ["kills-1", "kills-2", "soak"]
    assert "| kills | about kills-1 | 2 of 2 parts, 100 kills, 2 tests passed | " in once_more.table()
    assert "| soak | about soak | 0 of 1 parts, **1 FAILED** | " in once_more.table()
    assert "abc1234" in once_more.table()

    other_code = Proofs(tmp_path / "place", toys, ("another", "def5678"))
    assert [part.name for part in other_code.left()] == ["soak", "kills-1", "kills-2"]  # what never passed is first


def test_an_interruption_is_said_and_costs_only_the_part_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Proofs, part: Part) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setenv("VIGILD_PROOFS", str(tmp_path / "place"))
    monkeypatch.setattr(Proofs, "run", interrupted)
    assert main(["journal"]) == 130
    said = capsys.readouterr().out
    assert "interrupted" in said and said.rstrip().endswith("journal")


def test_with_changes_that_are_not_committed_nothing_is_kept(tmp_path: Path) -> None:
    part = toy(tmp_path, "kills-1", PASSES)
    proofs = Proofs(tmp_path / "place", [part], None)
    assert proofs.run(part)
    assert Proofs(tmp_path / "place", [part], None).left() == [part]


def test_a_part_that_only_skips_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ("key", "abc1234")
    monkeypatch.setattr(parts, "code_now", lambda: code)
    skips, both = toy(tmp_path, "systemd", SKIPS), toy(tmp_path, "some", SKIPS + PASSES.replace("it", "other"))
    proofs = Proofs(tmp_path / "place", [skips, both], code)
    assert not proofs.run(skips) and proofs.left()[0] == skips
    assert proofs.run(both)
    assert "1 tests passed, skipped: no container" in proofs.table()


def test_a_name_that_no_part_has_is_refused(tmp_path: Path) -> None:
    part = toy(tmp_path, "kills-1", PASSES)
    proofs = Proofs(tmp_path / "place", [part], None)
    assert proofs.named(["kills"]) == proofs.named(["kills-1"]) == [part]
    with pytest.raises(ValueError, match="no part 'kill'"):
        proofs.named(["kill"])


def test_the_table_in_the_document_is_written_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGILD_PROOFS", str(tmp_path / "place"))
    document = tmp_path / "guarantees.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--write", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| part |") and text.endswith(f"|\n{END}\nafter\n") and "old" not in text
    assert text.count("not run yet") == len({part.group for part in all_parts()})
    document.write_text("a document without the marks\n")
    with pytest.raises(ValueError, match="no <!-- written"):
        write_table(document, Proofs(tmp_path / "place", [], None))


def test_what_another_machine_wrote_stays_in_the_document_until_as_much_was_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "code_now", lambda: ("key", "abc1234"))
    toys = [toy(tmp_path, name, PASSES) for name in ("kills-1", "kills-2", "soak")]
    document = tmp_path / "guarantees.md"
    document.write_text(f"{BEGIN}\n{END}\n")

    def written(*run: Part, place: str, all_parts: Sequence[Part] = toys) -> str:
        proofs = Proofs(tmp_path / place, all_parts, ("key", "abc1234"))
        for part in run:
            proofs.run(part)
        write_table(document, proofs)
        return document.read_text()

    first = written(*toys, place="one machine")
    assert "2 of 2 parts, 100 kills" in first and "| soak | about soak | 50 kills, 1 tests passed | " in first
    assert written(place="another") == first, "nothing was run there"
    assert written(toys[0], place="another") == first, "less was run there"
    renamed = [replace(part, about="said in other words") for part in toys]
    assert "| soak | said in other words | 50 kills" in written(place="another", all_parts=renamed)

    monkeypatch.setattr(parts, "code_now", lambda: ("key", "def5678"))
    fails = toy(tmp_path, "soak", FAILS)
    newer = Proofs(tmp_path / "another", [*toys[:2], fails], ("key", "def5678"))
    assert newer.run(toys[1]) and not newer.run(fails)
    write_table(document, newer)
    text = document.read_text()
    assert "2 of 2 parts, 100 kills" in text and "abc1234, def5678" in text, "as much was run"
    assert "| soak | about soak | 0 of 1 parts, **1 FAILED** | " in text, "a failure is never hidden"
    assert "**1 FAILED**" in written(place="a third"), "nor by a machine that has not run it"


def test_the_key_of_the_code_is_that_of_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    monkeypatch.setattr(parts, "CODE", ("docs/vigild.toml",))
    found = code_now()
    assert found is None or len(found[0]) == 40
    monkeypatch.setattr(parts, "ROOT", Path(sys.prefix).parent.parent / "nowhere")
    assert code_now() is None
