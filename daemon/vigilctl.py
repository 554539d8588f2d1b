"""vigilctl, the command line of a running vigild. Starts fast: nothing here imports torch, numpy or trio."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from daemon.client import commands, feedback_and_model_commands
from daemon.client.admin_client import Admin, Failure, UsageError, admin_urls, read_token
from daemon.default_directories import SYSTEM_RUNTIME

ANSWERS = ("normal", "anomaly", "undo")
Command = Callable[[argparse.Namespace], int]

EPILOG = """\
examples:
  vigilctl status                          phase, lines, detectors, failures
  vigilctl send /var/log/nginx/access.log  feed it a file (.gz, .xz, .zst, ... too); returns when all is durable
  zcat old.gz | vigilctl send              or a pipe
  vigilctl tail                            what it flags, as it happens
  vigilctl incidents                       the same, grouped by cause
  vigilctl page                            the address of the page; open it in a browser
  vigilctl feedback 1207 normal            do not raise that again
  vigilctl train-from clean.log            learn from lines that you vouch for
  vigilctl detect 'GET /?id=1 UNION SELECT 1'
  sudo vigilctl doctor                     check the installation; says what to do about each fault
  vigilctl --json status | jq .checkpoint

The daemon is looked for at --admin, $VIGILD_ADMIN, admin.sock in the runtime directory
($RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/vigild, /run/vigild), then http://127.0.0.1:8765.
Exit status: 0 done, 1 failed (one line says why), 2 wrong usage.
"""


DOCTOR_EPILOG = """\
One line per finding:
  ok    checked, and in order
  warn  works, but may soon fail; or could not be checked
  fail  something that vigild promises does not hold
and below warn and fail, what to do about it. Nothing is changed.

It checks the interpreter, torch and the other packages; the units and their drop-ins; users, groups, directories
and sockets, as the service's user and the senders meet them; settings, rules and token; disk, descriptors, memory,
kernel and clock; and the daemon's own status. It works without systemd, and while the daemon is down. Some checks
need root: sudo vigilctl doctor.

Exit status: 0 nothing fails, 1 something does. With --json a list of {check, status, found, do}.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 usage. Expected errors are one line, no traceback."""
    parser = _vigilctl_parser()
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except Failure as exc:
        return _print_vigilctl_failure(str(exc))
    except UsageError as exc:
        parser.error(str(exc))
    except BrokenPipeError:
        # The reader of our output is gone (`| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 0 if args.run is _run_tail else _print_vigilctl_failure("interrupted")


def _print_vigilctl_failure(message: str) -> int:
    sys.stdout.flush()
    line = " ".join(message.split())
    print(f"vigilctl: {line}", file=sys.stderr)
    return 1


def _vigilctl_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vigilctl",
        description="Query and control a running vigild.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--admin", metavar="URL", help="http://HOST:PORT or unix:/path/admin.sock")
    parser.add_argument("--token-file", metavar="FILE", help="file with the token, if the daemon requires one")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    choices = parser.add_subparsers(metavar="COMMAND", required=True)

    _add_command(
        choices,
        "status",
        _run_on_admin(commands.status_command),
        "phase, progress, lines, detectors, last checkpoint, failures",
    )
    _add_command(
        choices,
        "checkpoint",
        _run_on_admin(commands.checkpoint_command),
        "save everything now; returns when it is durable",
    )
    _add_command(
        choices,
        "flush",
        _run_on_admin(commands.flush_command),
        "close every open session and score the closings (end of a file)",
    )

    _add_command(
        choices,
        "page",
        _run_on_admin(commands.page_command),
        "print the address of the page, with the token that lets it answer alerts",
    )

    doctor = _add_command(
        choices,
        "doctor",
        _run_doctor,
        "check everything that a daemon needs, and say what to do about each fault",
        epilog=DOCTOR_EPILOG,
    )
    doctor.add_argument("instance", metavar="NAME", nargs="?", help="check the instance vigild@NAME")

    detect = _add_command(choices, "detect", _run_detect, "judge a line without changing anything")
    detect.add_argument("line", metavar="LINE", nargs="?", default="-", help="a log line; - reads many (default)")
    detect.add_argument("--session", metavar="ID", help="judge as the next line of this session")
    detect.add_argument("--explain", action="store_true", help="say why: what was expected, what stands out")

    send = _add_command(choices, "send", _run_send, "send a file or standard input; 0 only when everything is durable")
    send.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="a log file, also .gz, .xz, .bz2, .zst or .zip; - is stdin"
    )
    send.add_argument("--socket", metavar="PATH", help="the daemon's log.sock, if it is not in a default place")

    train = _add_command(
        choices, "train-from", _run_train_from, "learn from a file that you vouch for; its lines are not counted"
    )
    train.add_argument(
        "file", metavar="FILE", help="a file of clean lines, also .gz, .xz, .bz2, .zst or .zip; - is stdin"
    )
    train.add_argument("--no-wait", action="store_true", help="return when the lines are durable, before the training")

    tail = _add_command(
        choices, "tail", _run_tail, "follow the incidents: the first, 10th, 100th... alert of each; Ctrl-C ends it"
    )
    tail.add_argument("--every", action="store_true", help="every record, also of incidents over the budget")
    tail.add_argument("--all", action="store_true", help="also a sample of everything else")

    incidents = _add_command(choices, "incidents", _run_incidents, "alerts grouped by cause, newest first")
    incidents.add_argument("--limit", metavar="N", type=int, default=50, help="at most N (default 50)")

    feedback = _add_command(choices, "feedback", _run_feedback, "answer an alert; without ID, list the answers")
    feedback.add_argument("alert", metavar="ID", nargs="?", help="the id of the alert, such as 1207 or 1207.1")
    feedback.add_argument("answer", metavar="ANSWER", nargs="?", choices=ANSWERS, help="normal, anomaly or undo")
    feedback.add_argument("--note", metavar="TEXT", default="", help="a reason, shown in the list")

    _add_models_commands(choices)
    _add_snapshots_commands(choices)
    return parser


def _add_models_commands(choices: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    models = choices.add_parser("models", help="list the model generations, or go back to one")
    generations = models.add_subparsers(metavar="ACTION", required=True)
    _add_command(
        generations,
        "list",
        _run_on_admin(feedback_and_model_commands.models_list),
        "every generation: in force, or refused and why",
    )
    rollback = _add_command(generations, "rollback", _run_rollback, "put an earlier generation in force again")
    rollback.add_argument(
        "generation", metavar="GENERATION", type=_generation_number, help="a number from the list, such as 3"
    )


def _add_snapshots_commands(choices: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    snapshots = choices.add_parser("snapshots", help="list, verify, pin or restore the saved states")
    actions = snapshots.add_subparsers(metavar="ACTION", required=True)
    _add_command(actions, "list", _run_on_admin(commands.snapshots_list), "every snapshot: line, size, time")
    _add_command(
        actions,
        "verify",
        _run_on_admin(commands.snapshots_verify),
        "check each against its checksums; exits 1 if one is damaged",
    )
    for action, command, text in (
        ("pin", commands.snapshots_pin, "keep it for ever"),
        ("unpin", commands.snapshots_unpin, "undo pin"),
        ("restore", commands.snapshots_restore, "go back to its knowledge; line numbers and alerts go on"),
    ):
        one = _add_command(actions, action, _run_on_snapshot(command), text)
        one.add_argument(
            "name", metavar="NAME", help="a name from the list, such as snapshot-00000000000000000812.msgpack"
        )


def _add_command(
    choices: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Command,
    text: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    description, layout = text[0].upper() + text[1:] + ".", argparse.RawDescriptionHelpFormatter
    parser = choices.add_parser(name, help=text, description=description, epilog=epilog, formatter_class=layout)
    # --json may also follow the command. SUPPRESS: a second default would override a --json before it.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"vigilctl {version('vigild')}")
        parser.exit()


def _run_on_admin(command: Callable[[Admin, bool], int]) -> Command:
    return lambda args: command(_admin_of_options(args), args.json)


def _run_on_snapshot(command: Callable[[Admin, bool, str], int]) -> Command:
    return lambda args: command(_admin_of_options(args), args.json, args.name)


def _run_detect(args: argparse.Namespace) -> int:
    return commands.detect_command(_admin_of_options(args), args.json, args.line, args.session, args.explain)


def _run_doctor(args: argparse.Namespace) -> int:
    from daemon.client.doctor.all_checks import ANSWER_SECONDS, doctor_command

    chosen, token = args.admin or os.environ.get("VIGILD_ADMIN"), read_token(args.token_file, os.environ)
    place = f"unix:{SYSTEM_RUNTIME / args.instance / 'admin.sock'}" if args.instance else None
    admin = Admin(admin_urls(chosen or place, os.environ), token, ANSWER_SECONDS)
    return doctor_command(admin, chosen, args.instance, os.environ, args.json)


def _run_send(args: argparse.Namespace) -> int:
    return commands.send_file_command(args.file, args.socket, os.environ, args.json)


def _run_tail(args: argparse.Namespace) -> int:
    return commands.tail_command(_admin_of_options(args), args.json, args.all, args.every)


def _run_train_from(args: argparse.Namespace) -> int:
    return feedback_and_model_commands.train_from_command(
        _admin_of_options(args), args.json, args.file, not args.no_wait
    )


def _run_incidents(args: argparse.Namespace) -> int:
    return feedback_and_model_commands.incidents_command(_admin_of_options(args), args.json, args.limit)


def _run_feedback(args: argparse.Namespace) -> int:
    return feedback_and_model_commands.feedback_command(
        _admin_of_options(args), args.json, args.alert, args.answer, args.note
    )


def _run_rollback(args: argparse.Namespace) -> int:
    return feedback_and_model_commands.models_rollback(_admin_of_options(args), args.json, args.generation)


def _generation_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**18):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a generation")
    return int(text)


def _admin_of_options(args: argparse.Namespace) -> Admin:
    return Admin(admin_urls(args.admin, os.environ), read_token(args.token_file, os.environ))


if __name__ == "__main__":
    sys.exit(main())
