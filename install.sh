#!/bin/sh
# Install vigild as a service, upgrade it in place, or remove it: `./install.sh --help`.
#
# A virtual environment cannot be moved, so each version is built in its final place, PREFIX/versions/NAME, and then the
# link PREFIX/current is replaced in one rename. PREFIX/bin leads through that link. A failure or kill before the rename
# leaves the running version untouched, with all the modules that it may still import.
set -eu
umask 022
unset PYTHONPATH PYTHONHOME

usage() {
    cat <<'END'
sudo ./install.sh [--from WHEEL|DIR] [--python PROGRAM] [--no-start]
sudo ./install.sh --uninstall

Installs vigild as a service of systemd and starts it. Run it again to upgrade in place: state and settings are kept,
and connected senders notice only a pause. If anything fails before the new version is complete, the old one keeps
running.

  --from WHEEL|DIR   what to install: a wheel of vigild, or another checkout (default: the one this script lies in)
  --python PROGRAM   the interpreter, 3.11 or newer, with its venv module (default: /usr/bin/python3)
  --no-start         neither start the service nor restart it
  --uninstall        stop and remove vigild. State, settings and the user stay; it prints where they are
  --help             this

Environment:
  PREFIX        where the program goes, a directory of its own (default: /opt/vigild)
  DESTDIR       put everything below this directory and leave the running system alone: for packagers, needs no root
  TORCH_INDEX   where to take PyTorch from (default: PyTorch's own index of builds without CUDA)
  PIP_...       pip's own variables; without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=/directory/of/wheels
                (sudo drops variables: sudo env PIP_NO_INDEX=1 ... ./install.sh)

What goes where:
  PREFIX/versions/, PREFIX/current, PREFIX/bin/       the program, with all Python packages that it needs
  /usr/local/lib/systemd/system/vigild*               the units; your own changes go to /etc/systemd/system, as ever
  /usr/local/lib/sysusers.d/, /usr/local/lib/tmpfiles.d/   the user vigild, the group vigild-log, the directories
  /usr/local/bin/vigild, /usr/local/bin/vigilctl      links to PREFIX/bin
  /etc/vigild, /var/lib/vigild                        settings and state: made when absent, never changed or removed
END
}

die() {
    echo "install.sh: $*" >&2
    exit 1
}

UNITS="vigild.service vigild.socket vigild@.service vigild@.socket"
UNIT_DIR=/usr/local/lib/systemd/system
LOGROTATE=/etc/logrotate.d/vigild
NEEDED_MIB=2500 # PyTorch, its wheel while it is unpacked, and everything else

main() {
    action=install from='' start=yes
    python=${PYTHON:-}
    while [ $# -gt 0 ]; do
        case $1 in
            --from) from=${2:-}; [ -n "$from" ] || die "--from wants a wheel or a directory"; shift ;;
            --from=*) from=${1#*=}; [ -n "$from" ] || die "--from wants a wheel or a directory" ;;
            --python) python=${2:-}; [ -n "$python" ] || die "--python wants a program"; shift ;;
            --python=*) python=${1#*=}; [ -n "$python" ] || die "--python wants a program" ;;
            --no-start) start=no ;;
            --uninstall) action=uninstall ;;
            --help | -h) usage; exit 0 ;;
            *) echo "install.sh: there is no option '$1'; see ./install.sh --help" >&2; exit 2 ;;
        esac
        shift
    done
    prefix=${PREFIX:-/opt/vigild}
    prefix=${prefix%/}
    [ -n "$prefix" ] || die "PREFIX is /, but must be a directory for vigild alone"
    destdir=${DESTDIR:-}
    destdir=${destdir%/}
    # They end up in units and in the first lines of scripts, where a blank would end a path.
    for path in "$prefix" ${destdir:+"$destdir"}; do
        case $path in
            *[!A-Za-z0-9/._+-]*) die "$path: PREFIX and DESTDIR may hold letters, digits and / . _ + - only" ;;
            /?*) ;;
            *) die "'$path': PREFIX and DESTDIR are absolute paths" ;;
        esac
    done
    home=$destdir$prefix
    [ "$(uname -s)" = Linux ] || die "vigild runs on Linux, this is $(uname -s)"
    if [ -z "$destdir" ] && [ "$(id -u)" != 0 ]; then
        die "has to be run as root: sudo ./install.sh (or set DESTDIR to prepare the files elsewhere)"
    fi
    systemd=no
    if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then systemd=yes; fi
    "$action"
}

# --- installing

install() {
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
    check_source
    check_python
    check_prefix
    if [ -d "$home/versions" ]; then
        lock
        sweep
    fi
    check_space
    lock

    began=$(date +%s)
    version=$(new_version)
    venv=$home/versions/$version
    work=$(mktemp -d "$home/.install-XXXXXX")
    log=$work/log
    unfinished=$venv worker=
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    trap 'exit 141' PIPE # ./install.sh | head
    # pip unpacks beside the environment: /tmp is small, or in memory, on many hosts.
    TMPDIR=$work
    export TMPDIR

    echo "vigild $version goes to $home, with $("$python" --version) of $python"
    step "creating the environment" "$python" -m venv "$venv"
    if [ -f "$source/install/cpu_torch.sh" ]; then
        step "installing PyTorch without CUDA (200 MB)" sh "$source/install/cpu_torch.sh" "$venv/bin/python"
    fi
    step "installing vigild and its other dependencies" pip_install "$package"
    step "checking the program and the settings" check_program
    relocate

    remember_units
    put_files
    switch
    unfinished=
    if [ -n "$destdir" ]; then
        step "removing the previous version" prune
        echo "staged in $destdir in $(elapsed "$began"); the running system was left alone"
        return
    fi
    users_and_directories
    activate
    step "removing the previous version" prune
    if [ -s "$log" ]; then sed 's/^/  /' "$log"; fi
    echo "installed in $(elapsed "$began")"
    finish
}

check_source() {
    from=${from:-$here}
    case $from in
        *.whl)
            [ -f "$from" ] || die "$from: no such wheel"
            source=$here package=$from
            name=$(basename "$from" | cut -d- -f2)
            ;;
        *)
            [ -f "$from/pyproject.toml" ] || die "$from: is neither a wheel nor a checkout of vigild (no pyproject.toml)"
            source=$(CDPATH='' cd -- "$from" && pwd -P)
            package=$source
            name=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$source/pyproject.toml")
            ;;
    esac
    for file in constraints.txt systemd/vigild.service systemd/vigild.tmpfiles; do
        [ -f "$source/$file" ] || die "$source/$file is missing: the checkout is incomplete, or older than this script"
    done
}

check_python() {
    if [ -z "$python" ]; then
        if [ -x /usr/bin/python3 ]; then python=/usr/bin/python3; else python=python3; fi
    fi
    command -v "$python" >/dev/null || die "there is no $python: install Python 3.11 or newer (Debian: apt install python3 python3-venv), or name it with --python"
    case $("$python" -c 'import sys; print("python", sys.version_info >= (3, 11))' 2>/dev/null) in
        'python True') ;;
        'python False') die "$("$python" --version 2>&1) ($python) is too old: vigild needs 3.11 or newer; name one with --python" ;;
        *) die "$python is not a Python interpreter that runs; name one with --python, such as /usr/bin/python3" ;;
    esac
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make environments: install its venv module (Debian: apt install python3-venv)"
    base=$("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
    case $base/ in
        /home/* | /root/* | /run/user/*)
            # ProtectHome=yes in the unit.
            [ -n "$destdir" ] || die "$python lies in $base, which the service cannot see; name another with --python, such as /usr/bin/python3"
            ;;
    esac
}

check_prefix() {
    [ -d "$home" ] || return 0
    [ -n "$(ls -A "$home")" ] || return 0
    # pyvenv.cfg: installed by hand before there was this script, the environment being PREFIX itself.
    if [ -d "$home/versions" ] || { [ -f "$home/pyvenv.cfg" ] && [ -f "$home/bin/vigild" ]; }; then return 0; fi
    die "$home: exists and holds something else; PREFIX must be a directory for vigild alone"
}

check_space() {
    place=$home
    until [ -d "$place" ]; do place=$(dirname "$place"); done
    free=$(df -Pk "$place" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$NEEDED_MIB" ] || die "$place has $free MiB free, installing takes $NEEDED_MIB MiB; make room or set PREFIX"
}

lock() {
    [ "${locked:-no}" = no ] || return 0
    why=$(mkdir -p "$home/versions" 2>&1) || die "$why; set PREFIX or DESTDIR to a writable directory"
    locked=yes
    command -v flock >/dev/null || return 0
    exec 9>"$home/.lock"
    # A process that a killed install.sh started holds the lock, too, as long as it writes there.
    flock -n 9 || die "another install.sh, or a process that a killed one started, is working in $home; try again when it has ended"
}

# Remove what a killed install.sh left.
sweep() {
    rm -rf "$home"/.install-*
    for old in "$home"/versions/*; do
        if [ -d "$old" ] && [ ! -x "$old/bin/vigild" ]; then rm -rf "$old"; fi
    done
}

new_version() {
    number=1 each=$name
    while [ -e "$home/versions/$each" ]; do
        number=$((number + 1)) each=$name-$number
    done
    echo "$each"
}

# step WHAT COMMAND...: one line for it and the time it took, a sign of life in between; what COMMAND wrote is shown
# when it fails.
step() {
    what=$1
    shift
    start_of_step=$(date +%s)
    "$@" >"$log" 2>&1 &
    worker=$!
    said=0 pause=0.1
    while kill -0 "$worker" 2>/dev/null; do
        sleep "$pause" 9>&-
        seconds=$(($(date +%s) - start_of_step))
        [ "$seconds" -lt 2 ] || pause=1
        if [ -t 1 ]; then
            printf '\r  %-40s %4d s ' "$what" "$seconds"
        elif [ $((seconds - said)) -ge 20 ]; then
            said=$seconds
            echo "  $what: $seconds s so far"
        fi
    done
    if wait "$worker"; then status=0; else status=$?; fi
    worker=
    [ ! -t 1 ] || printf '\r'
    if [ "$status" = 0 ]; then
        printf '  %-40s %4d s\n' "$what" $(($(date +%s) - start_of_step))
        return 0
    fi
    [ ! -t 1 ] || echo
    tail -n 20 "$log" | sed 's/^/    /' >&2
    echo "install.sh: '$what' failed (status $status), see above" >&2
    return "$status"
}

clean_up() {
    if [ -n "$worker" ]; then
        end_tree "$worker"
        wait "$worker" 2>/dev/null || true
    fi
    rm -rf "$work"
    if [ -n "$unfinished" ]; then
        rm -rf "$unfinished"
        rmdir "$home/versions" 2>/dev/null || true
        if [ -L "$home/current" ] || [ -f "$home/pyvenv.cfg" ]; then
            echo "install.sh: not upgraded; the installed version is as it was" >&2
        else
            rm -f "$home/.lock"
            rmdir "$home" 2>/dev/null || true
            echo "install.sh: not installed" >&2
        fi
    fi
}

# end_tree PROCESS: it and all that it has started; the parent first, which might go on to its next command.
end_tree() {
    # shellcheck disable=SC2046
    set -- "$1" $(cat "/proc/$1/task/$1/children" 2>/dev/null)
    kill "$1" 2>/dev/null || true
    shift
    for each; do end_tree "$each"; done
}

pip_install() {
    cp "$source/constraints.txt" "$venv/constraints.txt" # for vigilctl doctor
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
        --constraint "$source/constraints.txt" "$1"
}

check_program() {
    "$venv/bin/vigild" --version
    [ -z "$destdir" ] || return 0
    for file in /etc/vigild/*.toml; do
        [ -f "$file" ] || continue
        each=$(basename "$file" .toml)
        unit=vigild@$each.service
        [ "$each" != vigild ] || unit=vigild.service
        # A token that systemd passes exists only while the service runs.
        if grep -q /run/credentials/ "$file" && [ ! -d "/run/credentials/$unit" ]; then continue; fi
        if [ "$unit" = vigild.service ]; then
            "$venv/bin/vigild" --config "$file" --check
        elif [ -e "/var/lib/vigild/$each" ]; then # an instance's; other files may lie there too
            VIGILD_INSTANCE=$each "$venv/bin/vigild" --config "$file" --check
        fi
    done
}

# Scripts of an environment name its interpreter by its full path, and compiled modules their source.
relocate() {
    [ -n "$destdir" ] || return 0
    step "setting the final paths" compile_modules
    for file in "$venv"/bin/* "$venv/pyvenv.cfg"; do
        if [ -f "$file" ] && [ ! -L "$file" ] && grep -qI "$destdir" "$file"; then
            sed "s|$destdir$prefix|$prefix|g" "$file" >"$work/file"
            cat "$work/file" >"$file" # keeps its mode
        fi
    done
}

# A module that is not for this version of Python stays uncompiled, as pip leaves it; torch has such ones.
compile_modules() {
    "$venv/bin/python" -W ignore - "$destdir" "$venv/lib" <<'END'
import sys
from pathlib import Path
from py_compile import PyCompileError, compile

destdir, modules = sys.argv[1:]
for path in Path(modules).rglob("*.py"):
    try:
        compile(str(path), dfile=str(path).removeprefix(destdir), doraise=True)
    except PyCompileError:
        pass
END
}

# Note what is enabled and what runs, before anything is changed.
remember_units() {
    first=yes
    if [ -L "$home/current" ] || [ -f "$home/pyvenv.cfg" ]; then first=no; fi
    enabled='' running=''
    [ "$systemd" = yes ] || return 0
    for link in /etc/systemd/system/*.wants/vigild.service /etc/systemd/system/*.wants/vigild.socket \
        /etc/systemd/system/*.wants/vigild@?*.service /etc/systemd/system/*.wants/vigild@?*.socket; do
        if [ -L "$link" ]; then enabled="$enabled $(basename "$link")"; fi
    done
    running=$(systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating \
        vigild.service 'vigild@*.service' | awk '{ print $1 }')
}

put_files() {
    : >"$work/installed"
    for unit in $UNITS; do put "systemd/$unit" "$UNIT_DIR/$unit"; done
    put systemd/vigild.sysusers /usr/local/lib/sysusers.d/vigild.conf
    put systemd/vigild.tmpfiles /usr/local/lib/tmpfiles.d/vigild.conf
    for page in "$source"/man/*.[1-8]; do
        if [ -f "$page" ]; then put "man/$(basename "$page")" "/usr/local/share/man/man${page##*.}/$(basename "$page")"; fi
    done
    if [ -f "$source/completions/vigilctl.bash" ]; then
        put completions/vigilctl.bash /usr/local/share/bash-completion/completions/vigilctl
    fi
    end_logrotate
    for program in vigild vigilctl; do
        link=/usr/local/bin/$program
        if [ -e "$destdir$link" ] && [ ! -L "$destdir$link" ]; then
            echo "  left alone: $link, which is not a link of ours"
            continue
        fi
        mkdir -p "$destdir/usr/local/bin"
        ln -sfn "$prefix/bin/$program" "$destdir$link"
        echo "$link" >>"$work/installed"
    done
    [ -z "$destdir" ] || return 0
    # Units in /etc hide ours. Those that were copied there by hand, before this script existed, are obsolete.
    for old in /etc/systemd/system/vigild.service /etc/systemd/system/vigild.socket \
        /etc/systemd/system/vigild@.service /etc/systemd/system/vigild@.socket /etc/sysusers.d/vigild.conf; do
        if [ -L "$old" ] || [ ! -f "$old" ]; then continue; fi
        if [ -f "$home/installed" ]; then
            echo "  note: $old is used instead of the one installed here; changes are better made with 'systemctl edit'"
        else
            mv "$old" "$old.before"
            echo "  set aside: $old is now $old.before"
        fi
    done
}

# put SOURCE TARGET: replaces TARGET; remembered for --uninstall.
put() {
    mkdir -p "$destdir$(dirname "$2")"
    sed "s|/opt/vigild|$prefix|g" "$source/$1" >"$work/file"
    command install -m 644 "$work/file" "$destdir$2"
    echo "$2" >>"$work/installed"
}

# Earlier versions had logrotate rotate the alerts, which the daemon does by itself: a file that was changed stays.
end_logrotate() {
    [ -e "$home/shipped-logrotate" ] || return 0
    if cmp -s "$destdir$LOGROTATE" "$home/shipped-logrotate"; then
        rm -f "$destdir$LOGROTATE"
    elif [ -e "$destdir$LOGROTATE" ]; then
        echo "  left alone: $LOGROTATE, which was changed; vigild rotates by itself unless max_bytes in [alerts] is 0"
    fi
    rm -f "$home/shipped-logrotate"
}

switch() {
    mkdir -p "$home/bin"
    for program in vigild vigilctl; do point "../current/bin/$program" "$home/bin/$program"; done
    before=
    if [ -L "$home/current" ]; then before=$(readlink "$home/current"); fi
    point "versions/$version" "$home/current"
    # Remove what an older version installed and this one does not.
    if [ -f "$home/installed" ]; then
        grep -vxF -f "$work/installed" "$home/installed" | while read -r file; do rm -f "$destdir$file"; done
    fi
    mv "$work/installed" "$home/installed"
}

# point TARGET LINK: in one step, whatever LINK was.
point() {
    ln -sfn "$1" "$work/link"
    mv -T "$work/link" "$2"
}

users_and_directories() {
    missing=
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers /usr/local/lib/sysusers.d/vigild.conf || die "systemd-sysusers could not make the user vigild, see above"
    else
        missing="the user vigild and the group vigild-log"
    fi
    if command -v systemd-tmpfiles >/dev/null && id vigild >/dev/null 2>&1; then
        systemd-tmpfiles --create /usr/local/lib/tmpfiles.d/vigild.conf || die "systemd-tmpfiles could not make the directories, see above"
    fi
}

activate() {
    if [ "$systemd" = no ]; then
        echo "  systemd does not run here, so nothing was started${missing:+; to be made by you: $missing}"
        return
    fi
    systemctl daemon-reload
    # The links led to units that may lie elsewhere now, and [Install] may have changed.
    # shellcheck disable=SC2086
    [ -z "$enabled" ] || systemctl --quiet reenable $enabled
    if [ "$start" = no ]; then
        echo "  not started (--no-start): systemctl enable --now vigild.socket vigild.service"
        return
    fi
    for unit in $running; do
        step "restart of $unit" systemctl restart "$unit" || fall_back "$unit"
    done
    case " $running " in *vigild.service*) return ;; esac
    case $first$enabled in
        yes* | *vigild.service*)
            # A socket that failed before, for want of the user, would stay so.
            systemctl reset-failed vigild.service vigild.socket 2>/dev/null || true
            step "start (reads the state back)" systemctl enable --now vigild.socket vigild.service || fall_back vigild.service
            ;;
        *) echo "  vigild.service was not running and is not enabled, so it was not started" ;;
    esac
}

# The new version does not start: start the previous one again, if it is still there.
fall_back() {
    journalctl --unit="$1" --lines=20 --no-pager --output=cat 2>/dev/null | sed 's/^/    /' >&2 || true
    # An installation by hand has its units set aside and its programs replaced: there is no way back to it by itself.
    [ -n "$before" ] || die "$1 does not start; why is above, and in: journalctl -u $1"
    point "$before" "$home/current"
    # shellcheck disable=SC2086
    if systemctl restart ${running:-"$1"}; then
        rm -rf "$venv"
        die "$1 does not start with the new version, so the previous one runs again ($home/$before); why is above"
    fi
    die "$1 starts neither with the new version nor with the previous one ($home/$before, in place again); why is above"
}

# Remove versions that no process runs any more, and the environment of an installation by hand.
prune() {
    current=$(readlink "$home/current")
    for old in "$home"/versions/*; do
        [ "$old" != "$home/$current" ] || continue
        # In a file, or grep would find itself.
        echo "$old/" >"$work/old"
        if [ -z "$destdir" ] && grep -qsF -f "$work/old" /proc/[0-9]*/cmdline; then
            echo "kept: $old, which still runs; it is removed next time"
        else
            rm -rf "$old"
        fi
    done
    [ -f "$home/pyvenv.cfg" ] || return 0
    echo "$home/bin/python" >"$work/old"
    if grep -qsF -f "$work/old" /proc/[0-9]*/cmdline; then
        echo "kept: the environment in $home itself, which still runs; it is removed next time"
        return
    fi
    (cd "$home" && rm -rf lib lib64 include share pyvenv.cfg)
    for file in "$home"/bin/*; do
        case ${file##*/} in vigild | vigilctl) ;; *) rm -f "$file" ;; esac
    done
}

elapsed() {
    seconds=$(($(date +%s) - $1))
    printf '%d:%02d min' $((seconds / 60)) $((seconds % 60))
}

finish() {
    healthy=yes
    # Only releases that have it.
    if [ "$systemd$start" = yesyes ] && "$home/bin/vigilctl" doctor --help >/dev/null 2>&1; then
        "$home/bin/vigilctl" doctor || healthy=no
    fi
    cat <<'END'
What next:
  usermod --append --groups vigild-log www-data        who may send lines (here: a web server); restart it afterwards
  vigilctl send /var/log/nginx/access.log              feed it; or write lines to /run/vigild/log.sock
  vigilctl status                                      what it knows
  vigilctl page                                        the address of its page; open it in a browser
END
    [ "$healthy" = yes ] || die "installed, but not healthy yet: see the lines of 'vigilctl doctor' above"
}

# --- removing

uninstall() {
    # Without "installed": an installation that was killed before it was complete.
    if [ ! -f "$home/installed" ] && [ ! -d "$home/versions" ]; then
        die "$home: nothing that this script installed is there (another PREFIX?)"
    fi
    lock
    [ -f "$home/installed" ] || : >"$home/installed"
    if [ "$systemd" = yes ]; then
        echo "stopping (the last state is saved)"
        remember_units
        systemctl stop vigild.socket vigild.service 'vigild@*.socket' 'vigild@*.service'
        # shellcheck disable=SC2086
        [ -z "$enabled" ] || systemctl --quiet disable $enabled
    fi
    while read -r file; do rm -f "$destdir$file"; done <"$home/installed"
    # Debian has none of these directories by default.
    for directory in "$UNIT_DIR" "$(dirname "$UNIT_DIR")" /usr/local/lib/sysusers.d /usr/local/lib/tmpfiles.d; do
        rmdir "$destdir$directory" 2>/dev/null || true
    done
    echo "removing"
    end_logrotate
    (cd "$home" && rm -rf versions current bin installed .lock .install-*)
    rmdir "$home" 2>/dev/null || true
    if [ "$systemd" = yes ]; then
        systemctl daemon-reload
        systemctl reset-failed 'vigild*' 2>/dev/null || true
    fi
    [ -n "$destdir" ] || rm -rf /run/vigild
    left=
    for path in /var/lib/vigild /etc/vigild /etc/systemd/system/vigild*.d /etc/systemd/system/vigild*.before \
        /etc/sysusers.d/vigild.conf.before "$LOGROTATE" "$prefix"; do
        case $path in
            /etc/systemd/system/vigild\*) continue ;;
        esac
        if [ -e "$destdir$path" ]; then
            [ -n "$left" ] || echo "vigild is removed. Left, for you to keep or remove:"
            left="$left $destdir$path"
            du -sh "$destdir$path" | awk '{ printf "  %-40s %s\n", $2, $1 }'
        fi
    done
    if [ -n "$left" ]; then echo "    rm -r$left"; else echo "vigild is removed; nothing of it is left"; fi
    if [ -z "$destdir" ] && id vigild >/dev/null 2>&1; then
        echo "  the user vigild and the groups vigild and vigild-log"
        # userdel leaves the group vigild where it has members.
        echo "    userdel vigild; groupdel vigild 2>/dev/null; groupdel vigild-log"
    fi
}

main "$@"
