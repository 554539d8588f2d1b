"""How far a state directory goes, told without replaying it: all that is needed to take lines again.

Importing what judges lines takes a second, and replaying may take several. What the next frame must follow, where
every source stands and which settings are in force is told by the newest snapshot and the frames after it, as
they are. So new lines are journaled while the state is still on its way. Nothing heavy is imported here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from daemon.startup.progress import Reading
from detection.columns.state import Columns, OtherVersionError, decoded, of_this_version, part
from detection.columns.upgrades import STATES
from detection.frames import LinesFrame, SettingsFrame, SkipFrame, WithdrawnFrame, decode
from detection.sessions.connections import LivingSource, LivingSources
from detection.settings import DetectionSettings, RuleText
from persistence.directory import StoreError
from persistence.directory_scan import Recovery
from persistence.model_file import ModelFile
from persistence.preamble import NewerFormatError
from persistence.segment import Entry
from persistence.store import Store


@dataclass(frozen=True)
class Found:
    """`seq` and `line` are the place that the next frame follows, `lost_lines` how many of those before are gone;
    `frames_missing` says whether frames are, which may have held no line: an answer, a model.

    `living` are the sources that have not ended, `settings` what is in force (None before the first settings),
    `skipped` the frames that skip frames tell of, `withdrawn` the members that are withdrawn from which frame on, with
    the reasons, as withdrawn frames tell, `reading` what there is to apply after the snapshot at
    `snapshot_seq` (0: there is none). The rest is as in `Recovery`.
    """

    snapshot_seq: int
    seq: int
    line: int
    lost_lines: int
    frames_missing: bool
    living: list[LivingSource]
    settings: SettingsFrame | None
    skipped: set[int]
    withdrawn: dict[int, dict[str, str]]
    reading: Reading
    models: list[ModelFile]
    set_aside: list[str]
    notes: list[str]
    journal_missing: bool

    @property
    def replay_bytes(self) -> int:
        return self.reading.bytes

    @property
    def only_models_left(self) -> bool:
        """Then one is to judge from the next line on."""
        return not self.snapshot_seq and bool(self.models)


def find(store: Store, last_line: int = 0) -> Found:
    """Blocking. `last_line` is known to have been accepted, whatever the files say.

    Raises StoreError and JournalError when the disk fails, and StoreError for files of a later version, which are
    left untouched.
    """
    recovery = store.recover()
    try:
        seen = _Seen() if recovery.snapshot is None else _Seen.of(recovery.snapshot[2])
        return _found(recovery, seen, last_line)
    except NewerFormatError as exc:
        raise StoreError(str(exc)) from exc
    except OtherVersionError as exc:
        where = store.directory / (recovery.snapshot_name or "")
        raise StoreError(f"{where}: {exc}; {exc.advice}") from exc


def _found(recovery: Recovery, seen: "_Seen", last_line: int) -> Found:
    seen.take(recovery.entries)
    lost_lines, line = recovery.lost_lines, recovery.last_line
    if last_line > line:
        lost_lines += last_line - line
        recovery.notes.append(f"records were written up to line {last_line}, the journal ends at line {line}")
        line = last_line
    seen.reading.seq, seen.reading.line = recovery.last_seq, line
    settings = [frame for seq, frame in seen.settings if seq not in seen.skipped]
    return Found(
        snapshot_seq=recovery.snapshot[0] if recovery.snapshot is not None else 0,
        seq=recovery.last_seq,
        line=line,
        lost_lines=lost_lines,
        frames_missing=recovery.frames_missing,
        living=seen.living.sources(),
        settings=settings[-1] if settings else None,
        skipped=seen.skipped,
        withdrawn=seen.withdrawn,
        reading=seen.reading,
        models=recovery.models,
        set_aside=recovery.set_aside,
        notes=recovery.notes,
        journal_missing=recovery.journal_missing,
    )


@dataclass
class _Seen:
    living: LivingSources = field(default_factory=LivingSources)
    settings: list[tuple[int, SettingsFrame]] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    withdrawn: dict[int, dict[str, str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    @classmethod
    def of(cls, columns: Columns) -> "_Seen":
        """As of a snapshot, of this version or an older one. Raises OtherVersionError."""
        columns = STATES.upgraded(columns)
        with of_this_version():
            in_force = SettingsFrame(
                decoded(columns, "settings", DetectionSettings), decoded(columns, "rules", tuple[RuleText, ...])
            )
            return cls(LivingSources.load(part("sources", columns)), [(0, in_force)])

    def take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.reading.add(entry)
            try:
                frame = decode(entry.payload)
            except ValueError:
                # It cannot be applied either: it is met again, and dealt with, when it is replayed.
                continue
            match frame:
                case LinesFrame():
                    self.living.pass_over(frame.segments)
                case SettingsFrame():
                    self.settings.append((entry.seq, frame))
                case SkipFrame():
                    self.skipped.add(frame.seq)
                case WithdrawnFrame():
                    # Two of one frame: the first was journaled, and then a process was killed that would go on from it.
                    self.withdrawn[frame.seq] = frame.members | self.withdrawn.get(frame.seq, {})
                case _:
                    continue
