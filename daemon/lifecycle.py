"""One run of the daemon: what is opened in which order, which actor feeds which, and how it all stops.

Start: lock the state directory, listen, serve the API (which says "starting"), look through the directory for what
the next frame must follow, and take lines: they are journaled, and wait in the backlog. Meanwhile the heavy libraries
are imported and the state is recovered in a thread, replaying verdicts into the alerts actor. Then the actors that
need it: those that are fed before those that feed. Stop flows with the data: ingest stops reading, the sequencer
journals what is under way, scoring applies it, alerts writes it, and the checkpoint actor saves the last state.
"""

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from actors.alerts import Alerts, Outlet, Record, id_key, run_alerts
from actors.backlog import Backlog, run_backlog
from actors.checkpoint import CheckpointError, Checkpoints, run_checkpoint
from actors.ingest import MAX_CONNECTIONS, Counters, run_ingest
from actors.peek_mark import marks_work
from actors.scoring import Scoring, run_scoring
from actors.sequencer import Request, Sequencer, run_sequencer, submit
from actors.training import TrainingStatus, run_training
from daemon.api.app import create_app
from daemon.api.server import run_server
from daemon.control.service import Running, Service
from daemon.host.listeners import ListenError, Listeners, inherit, open_listeners, room_for_connections
from daemon.host.malloc import keep_freed_buffers
from daemon.host.notify import Notifier
from daemon.places import make_private, runtime_directory
from daemon.settings import Settings, SettingsError, load, read_rules
from daemon.startup.scan import Found, find
from detection.frames import Frame, ModelFrame, Sequenced, SettingsFrame
from detection.models.model import Model
from detection.settings import RuleText
from persistence.directory import StoreError
from persistence.journal import JournalError
from persistence.jsonl import JsonlWriter, open_jsonl
from persistence.store import Store, open_store

if TYPE_CHECKING:
    from daemon.startup.replay import Recovered
    from detection.verdicts.records import Verdicts

STATUS_SECONDS = 10.0
ALIVE_SECONDS = 2.0  # how often recovery tells the service manager that it goes on
ALIVE_GRACE_SECONDS = 30.0
DRAIN_SECONDS = 20.0
DEGRADED_DRAIN_SECONDS = 5.0  # what cannot be journaled now was never confirmed; a disk gets one more chance
# What may be journaled before the state is there to apply it to: it is all to be replayed if we are killed again. And
# a daemon that does not get through its start must not fill the disk: with so much to replay, it takes nothing more.
EARLY_BYTES = 1 << 20
MAX_EARLY_REPLAY_BYTES = 16 << 20
QUEUED_REQUESTS = 64
QUEUED_VERDICTS = 4
# Said under a manager that keeps our connections: those outlive us, the socket does not.
LOG_SOCKET_IS_OURS = (
    "log.sock is the daemon's own, not the service manager's: while the daemon restarts new senders are refused, and "
    "only the daemon's user and group may open it"
)
# Whoever rotates logs may send them, and left alone they would end us.
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGTERM, signal.SIGINT)
_TAIL_BYTES = 1 << 20
_OUTLETS = ("alerts", "verdicts")

log = logging.getLogger("vigild")


class Failed(Exception):
    """The daemon could not start or did not stop well; the message is one line for the operator."""


def run(
    settings: Settings,
    rules: tuple[RuleText, ...],
    token: str | None,
    *,
    config: Path | None,
    state_directory: Path,
) -> None:
    """Run until SIGTERM or SIGINT. Raises Failed; what is a fault of ours comes out as it is."""
    os.umask(0o077)
    keep_freed_buffers()
    notifier = Notifier.from_environment()
    try:
        with ExitStack() as stack:
            inherited = inherit()
            store = stack.enter_context(open_store(state_directory, keep=settings.checkpoint.keep))
            runtime = runtime_directory()
            make_private(runtime)
            listeners = stack.enter_context(
                open_listeners(runtime, settings.ingest.socket, settings.admin.bind, inherited)
            )
            log.info("listening on %s", ", ".join(listeners.places))
            outlets = [stack.enter_context(open_jsonl(state_directory / f"{name}.jsonl")) for name in _OUTLETS]
            try:
                trio.run(_Daemon(settings, rules, config, store, listeners, notifier, outlets).run, token)
            finally:
                for each in STOPPING:
                    signal.signal(each, signal.SIG_IGN)  # also while Python ends, which takes away its own handlers
    except Exception as exc:
        known = _known(exc)
        if not known:
            raise
        raise Failed("; ".join(known)) from exc


def _known(exc: BaseException) -> list[str]:
    """What to tell the operator when every part of `exc` is something that happens to well-kept daemons."""
    if isinstance(exc, BaseExceptionGroup):
        parts = [_known(part) for part in exc.exceptions]
        return list(dict.fromkeys(message for part in parts for message in part)) if all(parts) else []
    expected = (StoreError, ListenError, JournalError, CheckpointError, OSError)
    return [str(exc)] if isinstance(exc, expected) else []


class _Daemon:
    def __init__(
        self,
        settings: Settings,
        rules: tuple[RuleText, ...],
        config: Path | None,
        store: Store,
        listeners: Listeners,
        notifier: Notifier,
        outlets: Sequence[JsonlWriter],
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._config = config
        self._store = store
        self._listeners = listeners
        self._notifier = notifier
        self._outlets = outlets
        self._stop = trio.Event()
        self._reloading = trio.Lock()
        self._service = Service(
            settings,
            version("vigild"),
            places={
                "state": str(store.directory.absolute()),
                "runtime": str(runtime_directory().absolute()),
                "settings": str(settings.path.absolute()) if settings.path else None,
                "listening": listeners.places,
                "log_socket_of": "vigild" if listeners.log_is_ours else "service manager",
            },
        )
        self._watchdog = _every(ALIVE_SECONDS, notifier.watchdog)

    async def run(self, token: str | None) -> None:
        """The whole life of the process, from listening sockets to the last snapshot."""
        app = create_app(self._service, hosts=self._settings.admin.hosts, token=token)
        async with trio.open_nursery() as outer:
            await outer.start(self._obey_signals, outer)
            await outer.start(partial(run_server, app, self._listeners.admin, self._stop.wait))
            outer.start_soon(self._tell)
            await self._work()
            outer.cancel_scope.cancel()

    async def _obey_signals(self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        # When the receiver is left all is saved, and only closing remains: from then on a signal must not break it off.
        # One that comes while this is set up is held back.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        for each in STOPPING:
            signal.signal(each, _do_nothing)
        with trio.open_signal_receiver(*STOPPING, signal.SIGHUP, *HARMLESS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            task_status.started()
            async for number in signals:
                if number in HARMLESS:
                    name = signal.Signals(number).name
                    log.info("%s: nothing to do, a file that was rotated is noticed by itself", name)
                elif number == signal.SIGHUP:
                    # Beside, for it may have to wait (for the start, for a disk), and the next signal must not.
                    nursery.start_soon(self._reload)
                elif not self._stop.is_set():
                    log.info("%s: stopping", signal.Signals(number).name)
                    self._notifier.stopping()
                    self._service.stopping = True
                    self._stop.set()

    async def _work(self) -> None:
        """Take lines and recover, then run the other actors until the stop has flowed through all of them."""
        alerts, last_line = self._alerts()
        verdicts_in, verdicts = trio.open_memory_channel["Verdicts"](QUEUED_VERDICTS)
        async with trio.open_nursery() as flow:
            await flow.start(run_alerts, alerts, verdicts)
            with verdicts_in:
                found = await self._find(last_line)
                alerts.begin_after(found.snapshot_seq, found.line)
                self._service.read(found.reading)
                store, counters, backlog = self._store, Counters(), Backlog(EARLY_BYTES)
                sequencer = Sequencer(store.append, store.rotate, seq=found.seq, line=found.line, now=time.time)
                self._service.journal(sequencer)
                requests_in, frames = await self._journal(flow, sequencer, backlog)
                with requests_in:
                    async with trio.open_nursery() as background:
                        background.start_soon(self._cancel_at_stop, background.cancel_scope)
                        up_to_date, listening = trio.Event(), trio.Event()
                        background.start_soon(
                            self._listen, flow, found, requests_in.clone(), counters, up_to_date, listening
                        )
                        # A stop does not end it: what is journaled already is to be applied and saved.
                        with trio.CancelScope(shield=True):
                            recovered = await self._recover(verdicts_in, found, sequencer)
                            if found.only_models_left:
                                # Not before: a model may turn out to be of a later version, whose directory this is.
                                await self._start_journal(found)
                            verdicts_out = verdicts_in.clone()  # scoring's, which closes it
                            running = await self._running(
                                found, recovered, sequencer, alerts, counters, requests_in, verdicts_out
                            )
                            self._service.run(running)
                            await flow.start(run_checkpoint, running.checkpoints)
                            await flow.start(
                                run_scoring, running.scoring, frames, verdicts_out, self._notifier.watchdog
                            )
                            backlog.room = 0
                        background.start_soon(self._ask_for_patience)
                        await self._bring_up_to_date(found, recovered, running)
                        up_to_date.set()
                        await self._serve(background, running, listening, _known_through(found, recovered))
            patience = DRAIN_SECONDS if running.sequencer.trouble is None else DEGRADED_DRAIN_SECONDS
            flow.cancel_scope.deadline = trio.current_time() + patience
        if running.sequencer.trouble is not None:
            log.warning("stopped while lines waited, which were never confirmed: %s", running.sequencer.trouble.error)
        log.info("stopped at line %d", running.scoring.published.summary.line)

    async def _journal(
        self, flow: trio.Nursery, sequencer: Sequencer, backlog: Backlog
    ) -> "tuple[trio.MemorySendChannel[Request], trio.MemoryReceiveChannel[Sequenced]]":
        """Begin to journal: where to hand in requests, and where the frames come out that are to be applied."""
        requests_in, requests = trio.open_memory_channel[Request](QUEUED_REQUESTS)
        journaled_in, journaled = trio.open_memory_channel[Sequenced](0)
        frames_in, frames = trio.open_memory_channel[Sequenced](0)
        await flow.start(run_backlog, backlog, journaled, frames_in)
        idle_seconds = self._settings.session.idle_seconds
        await flow.start(partial(run_sequencer, sequencer, requests, journaled_in, idle_seconds=idle_seconds))
        return requests_in, frames

    async def _listen(
        self,
        flow: trio.Nursery,
        found: Found,
        requests: "trio.MemorySendChannel[Request]",
        counters: Counters,
        up_to_date: trio.Event,
        listening: trio.Event,
    ) -> None:
        """Take lines, as soon as the settings that are to judge them are journaled: the state may come later.

        Only what is too much to hold, or needs a model before its first line, waits until the state is `up_to_date`.
        """
        from detection.formats.kinds import recognise

        settings = SettingsFrame(self._settings.detection, self._rules)
        with requests:
            if found.only_models_left:
                await up_to_date.wait()
            if found.settings != settings:
                await submit(requests, settings)
            if found.replay_bytes > MAX_EARLY_REPLAY_BYTES:
                await up_to_date.wait()
            stored = self._listeners.stored
            unkept = await trio.to_thread.run_sync(_why_nothing_is_kept, self._notifier, stored)
            reason = unkept or (LOG_SOCKET_IS_OURS if self._listeners.log_is_ours else None)
            counters.exactly_once, counters.exactly_once_reason = reason is None, reason
            if reason and not unkept:
                log.warning("%s: start vigild.socket before vigild.service", reason)
            connections = room_for_connections(MAX_CONNECTIONS)
            if connections < MAX_CONNECTIONS:
                log.warning("few files may be open (LimitNOFILE): room for %d connections for log lines", connections)
            await flow.start(
                partial(
                    run_ingest,
                    self._listeners.log,
                    requests.clone(),
                    stop=self._stop,
                    salt=secrets.token_hex(4),
                    recognise=recognise,
                    kind=self._settings.format.kind,
                    max_line_bytes=self._settings.ingest.max_line_bytes,
                    max_connections=connections,
                    living=found.living,
                    stored=stored,
                    keeper=None if unkept else self._notifier,
                    counters=counters,
                )
            )
        log.info("taking lines from %d on", found.line + 1)
        listening.set()

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _ask_for_patience(self) -> None:
        """A disk that is full at the start may stay so for a while; the service manager must not give up."""
        while not self._service.started.is_set():
            self._notifier.extend(ALIVE_GRACE_SECONDS)
            await trio.sleep(ALIVE_SECONDS)

    async def _running(
        self,
        found: Found,
        recovered: "Recovered",
        sequencer: Sequencer,
        alerts: Alerts,
        counters: Counters,
        requests: "trio.MemorySendChannel[Request]",
        verdicts: "trio.MemorySendChannel[Verdicts]",
    ) -> Running:
        """The actors' shared parts, around the recovered state."""
        from daemon.startup.read_back import ReadBack
        from detection.columns.state import digest
        from detection.parts import model_in

        store, detector, checkpoint = self._store, recovered.detector, self._settings.checkpoint

        scoring = Scoring(detector, ReadBack(store, recovered, _sending(verdicts), self._watchdog))
        checkpoints = Checkpoints(
            store,
            sequencer,
            scoring,
            alerts,
            models=lambda columns: [name] if (name := model_in(columns).name) else [],
            now=time.time,
            seq=found.snapshot_seq,
            line=recovered.report.snapshot_line,
            every_lines=checkpoint.every_lines,
            every_seconds=checkpoint.every_seconds,
        )
        return Running(
            scoring=scoring,
            sequencer=sequencer,
            alerts=alerts,
            checkpoints=checkpoints,
            training=TrainingStatus(),
            ingest=counters,
            requests=requests,
            store=store,
            recovery=recovered.report,
            loaded_digest=await trio.to_thread.run_sync(lambda: digest(detector.export())),
            loaded_line=detector.line,
            recovered_line=found.line,
        )

    async def _serve(
        self, background: trio.Nursery, running: Running, listening: trio.Event, known_through: int
    ) -> None:
        """Train, answer. Who waits here is cancelled at the stop, as is `background`."""
        from daemon.startup.replay import adopt_model
        from daemon.trainer import program

        # Before there is a clone of `requests`: nobody would close it if this were cancelled, and the stop would wait.
        trained_by = await trio.to_thread.run_sync(program)
        await background.start(
            partial(
                run_training,
                running.scoring,
                running.requests.clone(),
                running.checkpoints,
                command=[sys.executable, "-m", "daemon.trainer"],
                scratch=self._store.training,
                models=self._store.training,
                load=partial(adopt_model, self._store),
                status=running.training,
                pause_seconds=self._settings.learning.retrain_seconds,
                resume_through=known_through,
                program=trained_by,
            )
        )
        background.start_soon(self._service.count_withdrawals)
        await listening.wait()
        self._service.started.set()
        log.info("serving from line %d on; %s", running.recovered_line, running.recovery.sentence())
        self._notifier.ready(self._service.sentence())
        await self._stop.wait()

    async def _find(self, last_line: int) -> Found:
        """What is there, in a thread, and a new segment of the journal behind it.

        `last_line` is the last line that a record was written about: the journal went that far at least.
        """
        found = await trio.to_thread.run_sync(find, self._store, last_line)
        if not found.only_models_left:
            await self._start_journal(found)
        return found

    async def _start_journal(self, found: Found) -> None:
        try:
            await trio.to_thread.run_sync(self._store.start_journal, found.seq, found.line)
        except JournalError as exc:
            # There is a state to ask; the sequencer tries again with the first frame, and says that lines wait.
            log.error("%s", exc)

    async def _recover(
        self, verdicts: "trio.MemorySendChannel[Verdicts]", found: Found, sequencer: Sequencer
    ) -> "Recovered":
        """The state, in a thread; replayed verdicts go to alerts, which writes those it has not."""

        def say(frame: Frame) -> None:
            trio.from_thread.run(self._say, sequencer, found, frame)

        tell = _every(ALIVE_SECONDS, lambda: self._notifier.extend(ALIVE_GRACE_SECONDS))

        send = _sending(verdicts)

        def deliver(said: "Verdicts") -> None:
            send(said)
            found.reading.replayed(said.seq)

        def recover() -> "Recovered":
            import torch  # a second and more, while lines are taken already

            torch.set_num_threads(1)
            from daemon.startup.replay import recover

            return recover(self._store, found, deliver, tell, say)

        recovered = await trio.to_thread.run_sync(recover)
        recovered.report.notes.extend(writer.note for writer in self._outlets if writer.note)
        for note in recovered.report.notes:
            log.warning("recovery: %s", note)
        return recovered

    async def _bring_up_to_date(self, found: Found, recovered: "Recovered", running: Running) -> None:
        """Apply what this start changes: a model lost or found, settings whose own frame could not be applied, members
        that were withdrawn before it."""
        detector, settings = recovered.detector, SettingsFrame(self._settings.detection, self._rules)
        changes: list[tuple[Frame, Model | None]] = []
        if found.settings == settings and detector.settings != settings:
            changes.append((settings, None))
        if recovered.withdraw is not None:
            changes.append((ModelFrame(recovered.withdraw.generation, "", ""), None))
        if recovered.model is not None:
            changes.append(recovered.model)
        if recovered.members is not None:
            changes.append((recovered.members, None))
        for frame, model in changes:
            seq, _ = await submit(running.requests, frame, model)
            await running.scoring.published.wait_for(seq)

    async def _say(self, sequencer: Sequencer, found: Found, frame: Frame) -> None:
        """Have a frame journaled without which nothing may go on: what was decided about one that failed.

        The disk may be full for a while; then this waits, and all that needs the state waits behind it, but for a stop.
        Raises StoreError when that comes.
        """
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(self._wait_patiently, patience)
                if found.only_models_left and not self._store.is_journaling:
                    await self._start_journal(found)
                await sequencer.interject(frame)
                waiting.cancel_scope.cancel()
        if patience.cancelled_caught:
            why = sequencer.trouble.error if sequencer.trouble is not None else "stopped"
            raise StoreError(f"what was decided about a frame that failed could not be journaled: {why}")

    async def _wait_patiently(self, scope: trio.CancelScope) -> None:
        """Keep the service manager from taking us for hung; when we are to stop, cancel `scope` a little later."""
        while not self._stop.is_set():
            self._watchdog()
            self._notifier.extend(ALIVE_GRACE_SECONDS)
            with trio.move_on_after(ALIVE_SECONDS):
                await self._stop.wait()
        await trio.sleep(DEGRADED_DRAIN_SECONDS)
        scope.cancel()

    def _alerts(self) -> tuple[Alerts, int]:
        """The alerts actor's part, and the last line that it has written a record about."""
        found = [_last_ids(writer) for writer in self._outlets]
        last = [max(filter(None, ids), key=id_key, default=None) for ids in found]
        alerts_file, verdicts_file = (
            Outlet(f"{name}.jsonl", writer, reached)
            for name, writer, reached in zip(_OUTLETS, self._outlets, last, strict=True)
        )
        recent = _last_records(self._outlets[0].path)
        write_all = self._settings.alarms.verdicts == "all"
        alerts = Alerts(alerts_file, verdicts_file, seq=0, write_all=write_all, recent=recent)
        # The mark has a checksum, so it counts; the file's own word only where there is no mark.
        return alerts, max(id_key(mark or own or "0")[0] for mark, own in found)

    async def _tell(self) -> None:
        """Keep `systemctl status` true."""
        while True:
            self._notifier.status(self._service.sentence())
            await trio.sleep(STATUS_SECONDS if self._service.started.is_set() else ALIVE_SECONDS)

    async def _reload(self) -> None:
        """SIGHUP: settings and rules anew. What sockets, format and sessions need waits for a restart."""
        async with self._reloading:
            await self._service.started.wait()
            if self._stop.is_set():
                log.warning("not reloaded: the daemon is stopping")
                return
            self._notifier.reloading()
            try:
                fresh = load(self._config, os.environ)
                await self._service.adopt(fresh, read_rules(fresh))
            except SettingsError as exc:
                log.error("not reloaded, the settings in force stay: %s", exc)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.warning("not reloaded: the daemon is stopping")
                return
            self._notifier.ready(self._service.sentence())


def _why_nothing_is_kept(notifier: Notifier, stored: Collection[str]) -> str | None:
    """None when connections outlive us, each with its mark (`actors.peek_mark`); otherwise the reason, for people.
    Blocking."""
    if not marks_work():
        return "this kernel keeps no mark beside the bytes of a socket (SO_PEEK_OFF)"
    # What came back from the store proves that there is one.
    return None if stored else notifier.why_nothing_is_kept()


def _sending(verdicts: "trio.MemorySendChannel[Verdicts]") -> "Callable[[Verdicts], None]":
    """`verdicts.send` for worker threads."""

    def send(item: "Verdicts") -> None:
        trio.from_thread.run(verdicts.send, item)

    return send


def _known_through(found: Found, recovered: "Recovered") -> int:
    """The frame through which the state is what it was in the life before; 0 when something of it is missing.

    Template ids may have been given twice then, and what was learned from the old ones must not meet the new ones.
    """
    lost = found.lost_lines or found.frames_missing or recovered.report.lost_lines or recovered.report.set_aside
    return 0 if lost else found.seq


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """`act`, but at most once in `seconds` however often it is called."""
    last = -seconds

    def sometimes() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return sometimes


def _last_ids(writer: JsonlWriter) -> tuple[str | None, str | None]:
    """The last id by the mark beside the file, and by the file's last record.

    A kill between two writes leaves the mark behind; a file that was rotated or damaged is behind the mark.
    """
    record = None if writer.last is None else _record(writer.last)
    return writer.last_id, None if record is None else str(record["id"])


def _last_records(path: Path) -> list[Record]:
    """The records in the last megabyte of a file of records; what is damaged there is left out."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read().split(b"\n")
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    """None for what is no record of ours."""
    try:
        record = msgspec.json.decode(line, type=dict[str, Any])
        id_key(record["id"])
    except (ValueError, KeyError, AttributeError):
        return None
    return record
