"""Snapshots for the operator: what there is, and what is kept for ever or held for a restore.

Everything here blocks, and raises `ControlError` for what the caller got wrong or the disk does not give.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from daemon.control.control_interface import ControlError
from detection.columns.state_columns import OtherVersionError
from detection.frames import Knowledge
from persistence.format_preamble import NewerFormatError
from persistence.model_file import ModelError
from persistence.snapshot_file import SnapshotError
from persistence.store import SnapshotInfo, Store


def listed_snapshots(store: Store) -> list[dict[str, Any]]:
    """As `Control.snapshots` has it."""
    return [_snapshot_fields(info) for info in reversed(store.snapshots())]


def verified_snapshots(store: Store) -> list[dict[str, Any]]:
    """As `Control.verify_snapshots` has it."""
    return [{**_snapshot_fields(info), "error": error} for info, error in reversed(store.verify_snapshots())]


def set_pinned(store: Store, name: str, pinned: bool) -> None:
    """Keep snapshot `name` for ever, or no longer."""
    try:
        with _unknown_snapshot_as_404(name):
            (store.pin_snapshot if pinned else store.unpin_snapshot)(name)
    except OSError as exc:
        raise ControlError(503, "not_written", f"the state directory cannot be written: {exc.strerror}") from exc


def hold_snapshot_knowledge(store: Store, name: str) -> tuple[str, Knowledge]:
    """What snapshot `name` knows, and the SHA-256 of that: kept until `store.release_snapshot(name)`."""
    from daemon.startup.detector_recovery import load_knowledge  # heavy imports, which a start must not wait for

    with _unknown_snapshot_as_404(name):
        store.hold_snapshot(name)
        try:
            return load_knowledge(store, name)
        except (SnapshotError, ModelError, NewerFormatError, OtherVersionError) as exc:
            store.release_snapshot(name)
            raise ControlError(409, "damaged", f"nothing was restored: {exc}") from exc
        except BaseException:
            store.release_snapshot(name)
            raise


@contextmanager
def _unknown_snapshot_as_404(name: str) -> Iterator[None]:
    """The store raises these for a name that no snapshot has."""
    try:
        yield
    except (ValueError, FileNotFoundError):
        raise ControlError(404, "not_found", f"there is no snapshot {name!r}") from None


def _snapshot_fields(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "seq": info.seq,
        "line": info.line,
        "bytes": info.bytes,
        "time": info.time,
        "pinned": info.pinned,
    }
