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
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from actors.alerts import Alerts, run_alerts
from actors.backlog import Backlog, run_backlog
from actors.checkpoint import CheckpointError, Checkpoints, CheckpointSettings, run_checkpoint
from actors.ingest import MAX_CONNECTIONS, IngestCounters, IngestSettings, Inherited, run_ingest
from actors.journaled_mark import peek_marks_work
from actors.scoring import Scoring, run_scoring
from actors.sequencer import Request, Sequencer, run_sequencer, submit_frame
from actors.training import Trainer, run_training
from actors.training_status import TrainingStatus
from daemon.api import http_connections as admin_connections
from daemon.api.app import create_app
from daemon.api.event_streams import MAX_STREAMS
from daemon.api.server import run_server
from daemon.control.condition import Running
from daemon.control.service import Service
from daemon.default_directories import make_private_directory, runtime_directory
from daemon.host.disk_room import append_before_records, keep_room_for_journal
from daemon.host.listeners import ListenError, Listeners, inherit_sockets, open_listeners
from daemon.host.malloc import keep_freed_buffers
from daemon.host.notify import Notifier
from daemon.host.page_token import TOKEN_NAME, open_page_token
from daemon.host.process_limits import ConnectionLimits, share_descriptors
from daemon.host.signals import ignore_stop_signals, run_signals
from daemon.host.watchdog_extension import ALIVE_SECONDS, WatchdogExtension
from daemon.settings_file import Settings, SettingsError, load_settings, read_rule_files, token_path
from daemon.startup.background_recovery import (
    DEGRADED_DRAIN_SECONDS,
    BackgroundRecovery,
    bring_up_to_date,
    known_through,
    start_journal,
)
from daemon.startup.resumed_alerts import OUTLETS, resumed_alerts
from daemon.startup.startup_scan import Found, check_snapshot_columns, scan_directory
from detection.detection_settings import RuleText
from detection.frames import Sequenced, SettingsFrame
from persistence.journal import JournalError
from persistence.jsonl import JsonlWriter, open_jsonl
from persistence.record_space import RecordSpace
from persistence.state_directory import StoreError
from persistence.store import Store, open_store

if TYPE_CHECKING:
    from daemon.startup.detector_recovery import Recovered
    from detection.verdicts.verdict_records import Verdicts

STATUS_SECONDS = 10.0
MOST_CONNECTIONS = ConnectionLimits(MAX_CONNECTIONS, admin_connections.MAX_CONNECTIONS, admin_connections.MAX_WAITING)
DRAIN_SECONDS = 20.0
# What may be journaled before the state is there to apply it to: it is all to be replayed if we are killed again. And
# a daemon that does not get through its start must not fill the disk: with so much to replay, it takes nothing more.
EARLY_BYTES = 1 << 20
MAX_EARLY_REPLAY_BYTES = 16 << 20
QUEUED_REQUESTS = 64
QUEUED_VERDICTS = 4
# Logged under a manager that keeps our connections: those outlive us, the socket does not.
LOG_SOCKET_IS_OURS = (
    "log.sock is the daemon's own, not the service manager's: while the daemon restarts new senders are refused, and "
    "only the daemon's user and group may open it"
)
log = logging.getLogger("vigild")


class DaemonFailed(Exception):
    """The daemon could not start or did not stop well; the message is one line for the operator."""


def run_daemon(
    settings: Settings,
    rules: tuple[RuleText, ...],
    token: str | None,
    *,
    config: Path | None,
    state_directory: Path,
) -> None:
    """Run until SIGTERM or SIGINT. Raises DaemonFailed; what is a fault of ours comes out as it is."""
    os.umask(0o077)
    keep_freed_buffers()
    # Raises the soft limit, before files are opened.
    share_descriptors(MOST_CONNECTIONS, max(2, len(settings.admin.bind)))
    notifier = Notifier.from_environment()
    try:
        with ExitStack() as stack:
            inherited = inherit_sockets()
            store = stack.enter_context(
                open_store(state_directory, keep=settings.checkpoint.keep, check=check_snapshot_columns)
            )
            runtime = runtime_directory()
            make_private_directory(runtime)
            listeners = stack.enter_context(
                open_listeners(runtime, settings.ingest.socket, settings.admin.bind, inherited)
            )
            log.info("listening on %s", ", ".join(listeners.places))
            own_token = None
            if token is None and listeners.tcp:
                own_token = stack.enter_context(open_page_token(runtime))
            files = {f"{name}.jsonl": free for name, free in OUTLETS.items()}
            space = RecordSpace(state_directory, list(files), max_bytes=settings.alerts.max_bytes)
            outlets = [
                stack.enter_context(open_jsonl(state_directory / name, space=space, keep_free=free))
                for name, free in files.items()
            ]
            try:
                daemon = _Daemon(settings, rules, config, store, listeners, notifier, outlets, space)
                trio.run(daemon.run, token, own_token)
            finally:
                ignore_stop_signals()
    except Exception as exc:
        known = _known_failure_messages(exc)
        if not known:
            raise
        raise DaemonFailed("; ".join(known)) from exc


def _known_failure_messages(exc: BaseException) -> list[str]:
    """The messages for the operator if every part of `exc` is a fault of the surroundings, else none."""
    if isinstance(exc, BaseExceptionGroup):
        parts = [_known_failure_messages(part) for part in exc.exceptions]
        return list(dict.fromkeys(message for part in parts for message in part)) if all(parts) else []
    expected = (StoreError, ListenError, JournalError, CheckpointError, OSError)
    if isinstance(exc, expected):
        return [str(exc)]
    if isinstance(exc, MemoryError | ImportError) or "can't start new thread" in str(exc):
        what = " ".join(str(exc).split()) or type(exc).__name__
        return [f"out of memory, threads or parts of the installation: {what}; see ulimit -a, and vigilctl doctor"]
    return []


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
        space: RecordSpace,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._config = config
        self._store = store
        self._listeners = listeners
        self._notifier = notifier
        self._outlets = outlets
        self._space = space
        self._limits = share_descriptors(MOST_CONNECTIONS, len(listeners.admin))
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
                "token": str(token_path(settings) or runtime_directory().absolute() / TOKEN_NAME),
                "token_of": "vigild" if settings.admin.token_file is None else "settings",
            },
        )
        self._condition = self._service.condition
        self._condition.record_space = space
        self._watchdog = WatchdogExtension(notifier)

    async def run(self, token: str | None, own_token: str | None) -> None:
        """The whole life of the process, from listening sockets to the last snapshot.

        `token` is the operator's, for all that comes over TCP, `own_token` the one made for the page.
        """
        app = create_app(
            self._service,
            hosts=self._settings.admin.hosts,
            token=token or own_token,
            token_for="changes" if token is None else "all",
            max_streams=min(MAX_STREAMS, max(1, self._limits.admin // 4)),
        )
        async with trio.open_nursery() as outer:
            # A reload runs beside: it may have to wait (for the start, for a disk), and the next signal must not.
            await outer.start(run_signals, self._begin_stop, partial(outer.start_soon, self._reload_settings))
            await outer.start(
                partial(
                    run_server,
                    app,
                    self._listeners.admin,
                    self._stop.wait,
                    counters=self._condition.admin,
                    max_connections=self._limits.admin,
                    max_waiting=self._limits.admin_waiting,
                )
            )
            outer.start_soon(self._keep_manager_status)
            outer.start_soon(keep_room_for_journal, self._space)
            await self._take_lines_until_stop()
            outer.cancel_scope.cancel()

    def _begin_stop(self, signal_name: str) -> None:
        if not self._stop.is_set():
            log.info("%s: stopping", signal_name)
            self._notifier.stopping()
            self._condition.stopping = True
            self._stop.set()

    async def _take_lines_until_stop(self) -> None:
        """Take lines and recover, then run the other actors until the stop has flowed through all of them."""
        write_all = self._settings.alarms.verdicts == "all"
        alerts, last_line = resumed_alerts(self._outlets, write_all)
        verdicts_in, verdicts = trio.open_memory_channel["Verdicts"](QUEUED_VERDICTS)
        async with trio.open_nursery() as flow:
            await flow.start(run_alerts, alerts, verdicts)
            with verdicts_in:
                found = await self._scan_directory(last_line)
                alerts.begin_after_snapshot(found.snapshot_seq, found.line)
                self._condition.reading = found.reading
                store, counters, backlog = self._store, IngestCounters(), Backlog(EARLY_BYTES)
                append = partial(append_before_records, store.append, self._space)
                sequencer = Sequencer(append, store.rotate, seq=found.seq, line=found.line, now=time.time)
                self._condition.sequencer = sequencer
                requests_in, frames = await self._begin_to_journal(flow, sequencer, backlog)
                with requests_in:
                    async with trio.open_nursery() as background:
                        background.start_soon(self._cancel_at_stop, background.cancel_scope)
                        up_to_date, listening = trio.Event(), trio.Event()
                        background.start_soon(
                            self._take_lines, flow, found, requests_in.clone(), counters, up_to_date, listening
                        )
                        # A stop does not end it: what is journaled already is to be applied and saved.
                        with trio.CancelScope(shield=True):
                            recovery = BackgroundRecovery(store, found, sequencer, self._watchdog, self._stop)
                            recovered = await recovery.run(_send_verdicts_from_thread(verdicts_in))
                            self._log_recovery(recovered)
                            if found.only_models_left:
                                # Not before: a model may turn out to be of a later version, whose directory this is.
                                await start_journal(self._store, found)
                            verdicts_out = verdicts_in.clone()  # scoring's, which closes it
                            running = await self._run_recovered_actors(
                                found, recovered, sequencer, alerts, counters, requests_in, verdicts_out
                            )
                            self._service.run(running)
                            await flow.start(run_checkpoint, running.checkpoints)
                            await flow.start(
                                run_scoring, running.scoring, frames, verdicts_out, self._notifier.watchdog
                            )
                            backlog.room = 0
                        background.start_soon(self._watchdog.extend_until, self._condition.started)
                        settings = SettingsFrame(self._settings.detection, self._rules)
                        await bring_up_to_date(found, recovered, settings, requests_in, running.scoring)
                        up_to_date.set()
                        await self._train_and_serve(background, running, listening, known_through(found, recovered))
            drain_seconds = DRAIN_SECONDS if sequencer.failure is None else DEGRADED_DRAIN_SECONDS
            flow.cancel_scope.deadline = trio.current_time() + drain_seconds
        if sequencer.failure is not None:
            log.warning("stopped while lines waited, which were never confirmed: %s", sequencer.failure.error)
        log.info("stopped at line %d", running.scoring.published.summary.line)

    async def _begin_to_journal(
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

    async def _take_lines(
        self,
        flow: trio.Nursery,
        found: Found,
        requests: "trio.MemorySendChannel[Request]",
        counters: IngestCounters,
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
                await submit_frame(requests, settings)
            if found.replay_bytes > MAX_EARLY_REPLAY_BYTES:
                await up_to_date.wait()
            stored = self._listeners.stored
            unkept = await trio.to_thread.run_sync(_why_nothing_is_kept, self._notifier, stored)
            reason = unkept or (LOG_SOCKET_IS_OURS if self._listeners.log_is_ours else None)
            counters.exactly_once, counters.exactly_once_reason = reason is None, reason
            if reason and not unkept:
                log.warning("%s: start vigild.socket before vigild.service", reason)
            connections = self._limits.log
            if self._limits != MOST_CONNECTIONS:
                log.warning(
                    "few files may be open (LimitNOFILE): room for %d connections for log lines, and on each admin "
                    "socket for %d with a request and %d without one",
                    *(connections, self._limits.admin, self._limits.admin_waiting),
                )
            await flow.start(
                partial(
                    run_ingest,
                    self._listeners.log,
                    requests.clone(),
                    IngestSettings(
                        salt=secrets.token_hex(4),
                        recognise=recognise,
                        kind=self._settings.format.kind,
                        max_line_bytes=self._settings.ingest.max_line_bytes,
                        max_connections=connections,
                    ),
                    stop=self._stop,
                    inherited=Inherited(found.living, stored),
                    keeper=None if unkept else self._notifier,
                    counters=counters,
                )
            )
        log.info("taking lines from %d on", found.line + 1)
        listening.set()

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _run_recovered_actors(
        self,
        found: Found,
        recovered: "Recovered",
        sequencer: Sequencer,
        alerts: Alerts,
        counters: IngestCounters,
        requests: "trio.MemorySendChannel[Request]",
        verdicts: "trio.MemorySendChannel[Verdicts]",
    ) -> Running:
        """The actors that need the recovered state; `verdicts` is closed by scoring."""
        from daemon.startup.read_back import ReadBack
        from detection.columns.state_columns import digest
        from detection.detector_state import model_in

        store, detector, checkpoint = self._store, recovered.detector, self._settings.checkpoint

        scoring = Scoring(
            detector, ReadBack(store, recovered, _send_verdicts_from_thread(verdicts), self._watchdog.alive)
        )
        checkpoints = Checkpoints(
            store,
            sequencer,
            scoring,
            alerts,
            CheckpointSettings(checkpoint.every_lines, checkpoint.every_seconds),
            models=lambda columns: [name] if (name := model_in(columns).name) else [],
            after=(found.snapshot_seq, recovered.report.snapshot_line),
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

    def _log_recovery(self, recovered: "Recovered") -> None:
        recovered.report.notes.extend(writer.note for writer in self._outlets if writer.note)
        for note in recovered.report.notes:
            log.warning("recovery: %s", note)

    async def _train_and_serve(
        self, background: trio.Nursery, running: Running, listening: trio.Event, known_through: int
    ) -> None:
        """Train, and say that we serve; until cancelled, as `background` is at the stop."""
        from daemon.startup.detector_recovery import adopt_model
        from daemon.trainer import training_program

        # Before there is a clone of `requests`: nobody would close it if this were cancelled, and the stop would wait.
        trainer = Trainer(
            command=[sys.executable, "-m", "daemon.trainer"],
            scratch=self._store.training,
            models=self._store.training,
            load=partial(adopt_model, self._store),
            program=await trio.to_thread.run_sync(training_program),
        )
        await background.start(
            partial(
                run_training,
                running.scoring,
                running.requests.clone(),
                running.checkpoints,
                trainer,
                running.training,
                pause_seconds=self._settings.learning.retrain_seconds,
                resume_through=known_through,
            )
        )
        background.start_soon(self._condition.count_withdrawals, running)
        background.start_soon(self._service.release_left_restores)
        await listening.wait()
        self._condition.started.set()
        log.info("serving from line %d on; %s", running.recovered_line, running.recovery.recovery_sentence())
        self._notifier.ready(self._condition.status_sentence())
        await self._stop.wait()

    async def _scan_directory(self, last_line: int) -> Found:
        """What is there, in a thread, and a new segment of the journal behind it.

        `last_line` is the last line that a record was written about: the journal went that far at least.
        """
        found = await trio.to_thread.run_sync(scan_directory, self._store, last_line)
        if not found.only_models_left:
            await start_journal(self._store, found)
        return found

    async def _keep_manager_status(self) -> None:
        """Keep `systemctl status` true."""
        while True:
            self._notifier.status(self._condition.status_sentence())
            await trio.sleep(STATUS_SECONDS if self._condition.started.is_set() else ALIVE_SECONDS)

    async def _reload_settings(self) -> None:
        """SIGHUP: read settings and rules again. Those of sockets, format and sessions wait for a restart."""
        async with self._reloading:
            await self._condition.started.wait()
            if self._stop.is_set():
                log.warning("not reloaded: the daemon is stopping")
                return
            self._notifier.reloading()
            try:
                fresh = load_settings(self._config, os.environ)
                await self._service.adopt_settings(fresh, read_rule_files(fresh))
            except SettingsError as exc:
                log.error("not reloaded, the settings in force stay: %s", exc)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.warning("not reloaded: the daemon is stopping")
                return
            self._notifier.ready(self._condition.status_sentence())


def _why_nothing_is_kept(notifier: Notifier, stored: Collection[str]) -> str | None:
    """None when connections outlive us, each with its mark (`actors.journaled_mark`); otherwise the reason, for people.
    Blocking."""
    if not peek_marks_work():
        return "this kernel keeps no mark beside the bytes of a socket (SO_PEEK_OFF)"
    # What came back from the store proves that there is one.
    return None if stored else notifier.why_nothing_is_kept()


def _send_verdicts_from_thread(verdicts: "trio.MemorySendChannel[Verdicts]") -> "Callable[[Verdicts], None]":
    """`verdicts.send` for worker threads."""

    def send_verdicts(item: "Verdicts") -> None:
        trio.from_thread.run(verdicts.send, item)

    return send_verdicts
