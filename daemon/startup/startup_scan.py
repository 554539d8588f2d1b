"""Read from a state directory, without replaying it, all that is needed to take lines again.

Importing the detector takes a second, and a replay may take several. Which frame comes next, the position of every
source, and the settings in force can be read from the newest snapshot and the frames after it alone. So new lines are
journaled while the state is still being read. Nothing heavy is imported here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from daemon.settings_file import Settings, read_rule_files
from daemon.startup.replay_progress import ReplayProgress
from detection.column_bounds import DamagedError, check_state
from detection.columns.layout_upgrades import STATES
from detection.columns.state_columns import Columns, OtherVersionError, columns_under, json_column, of_this_version
from detection.detection_settings import DetectionSettings, RuleText
from detection.frames import LinesFrame, ModelFrame, SettingsFrame, SkipFrame, WithdrawnFrame, decode_frame
from detection.rules.rule_files import RuleError
from detection.rules.rule_matching import compiled_rules
from detection.sessions.living_sources import LivingSource, LivingSources
from persistence.directory_contents import Recovery
from persistence.format_preamble import NewerFormatError
from persistence.journal_segment import Entry
from persistence.model_file import ModelFile, generation_of_model_file
from persistence.state_directory import StoreError
from persistence.store import Store


@dataclass(frozen=True)
class Found:
    """What the scan found.

        seq, line         the numbers that the next frame follows
        snapshot_seq      the seq of the snapshot that the replay starts from, 0 without one
        lost_lines        how many lines up to `line` are lost
        frames_missing    whether frames are lost, which may have held no line: feedback, a model
        living            the sources that have not ended
        settings          the settings in force, None before the first
        skipped           the seqs that journaled skip frames name
        withdrawn         {seq: {member: reason}}: members withdrawn from that frame on, as journaled
        reading           the frames to replay after the snapshot

    The rest is as in `persistence.directory_contents.Recovery`.
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
    reading: ReplayProgress
    models: list[ModelFile]
    set_aside: list[str]
    notes: list[str]
    journal_missing: bool

    @property
    def replay_bytes(self) -> int:
        return self.reading.bytes

    @property
    def only_models_left(self) -> bool:
        """No snapshot is left, but a model: it is to judge from the next line on."""
        return not self.snapshot_seq and bool(self.models)


def scan_directory(store: Store, last_line: int = 0) -> Found:
    """Scan the directory of `store`. Blocking. `last_line` is known to have been accepted, whatever the files say.

    Raises StoreError and JournalError when the disk fails, and StoreError for files of a later version, which are
    left untouched.
    """
    recovery = store.recover()
    try:
        scan = _Scan() if recovery.snapshot is None else _Scan.of_snapshot(recovery.snapshot[2])
        return _found_by_scan(recovery, scan, last_line)
    except NewerFormatError as exc:
        raise StoreError(str(exc)) from exc
    except OtherVersionError as exc:
        where = store.directory / (recovery.snapshot_name or "")
        raise StoreError(f"{where}: {exc}; {exc.advice}") from exc


def check_snapshot_columns(seq: int, line: int, columns: Columns) -> None:
    """Check that the columns of a snapshot with sound checksums are a state. Raises DamagedError, a ValueError.

    A snapshot of another version passes: loading it raises an error with advice.
    """
    try:
        state = STATES.upgraded(columns)
    except OtherVersionError:
        return
    check_state(state)
    rules = json_column(state, "rules", tuple[RuleText, ...])
    try:
        if rules != read_rule_files(Settings()):  # our own take a tenth of a second, and lines are waiting
            compiled_rules(rules)
    except RuleError as exc:
        raise DamagedError(f"column rules: {exc}") from exc
    if (state["seq"], state["line"]) != (seq, line):
        raise DamagedError(f"is not the state of frame {seq} and line {line}, as its header says")
    try:
        model = json_column(state, "model", ModelFrame).name
        if model:
            generation_of_model_file(model)
    except ValueError as exc:
        raise DamagedError(f"column model: {exc}") from exc


def _found_by_scan(recovery: Recovery, scan: "_Scan", last_line: int) -> Found:
    scan.take_entries(recovery.entries)
    lost_lines, line = recovery.lost_lines, recovery.last_line
    if last_line > line:
        lost_lines += last_line - line
        recovery.notes.append(f"records were written up to line {last_line}, the journal ends at line {line}")
        line = last_line
    scan.reading.seq, scan.reading.line = recovery.last_seq, line
    settings = [frame for seq, frame in scan.settings if seq not in scan.skipped]
    return Found(
        snapshot_seq=recovery.snapshot[0] if recovery.snapshot is not None else 0,
        seq=recovery.last_seq,
        line=line,
        lost_lines=lost_lines,
        frames_missing=recovery.frames_missing,
        living=scan.living.sources(),
        settings=settings[-1] if settings else None,
        skipped=scan.skipped,
        withdrawn=scan.withdrawn,
        reading=scan.reading,
        models=recovery.models,
        set_aside=recovery.set_aside,
        notes=recovery.notes,
        journal_missing=recovery.journal_missing,
    )


@dataclass
class _Scan:
    living: LivingSources = field(default_factory=LivingSources)
    settings: list[tuple[int, SettingsFrame]] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    withdrawn: dict[int, dict[str, str]] = field(default_factory=dict)
    reading: ReplayProgress = field(default_factory=ReplayProgress)

    @classmethod
    def of_snapshot(cls, columns: Columns) -> "_Scan":
        """As of a snapshot, of this version or an older one. Raises OtherVersionError."""
        columns = STATES.upgraded(columns)
        with of_this_version():
            in_force = SettingsFrame(
                json_column(columns, "settings", DetectionSettings), json_column(columns, "rules", tuple[RuleText, ...])
            )
            return cls(LivingSources.load(columns_under("sources", columns)), [(0, in_force)])

    def take_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.reading.add(entry)
            try:
                frame = decode_frame(entry.payload)
            except ValueError:
                # It cannot be applied either: the replay deals with it.
                continue
            match frame:
                case LinesFrame():
                    self.living.pass_over(frame.segments)
                case SettingsFrame():
                    self.settings.append((entry.seq, frame))
                case SkipFrame():
                    self.skipped.add(frame.seq)
                case WithdrawnFrame():
                    # Two for one frame: the process was killed after the first, and the next one withdrew more.
                    self.withdrawn[frame.seq] = frame.members | self.withdrawn.get(frame.seq, {})
                case _:
                    continue
