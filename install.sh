#!/bin/sh
# Installs pxsched on a Proxmox VE node, tries it on any Debian machine, or removes it. See --help.
set -eu
here=$(dirname "$(readlink -f "$0")")
cd "$here"

usage() {
    cat <<'TEXT'
usage: ./install.sh [--dry-run] [--prefix DIR] [--storage NAME]    install on this Proxmox VE 8 or 9 node
       ./install.sh --uninstall [--dry-run] [--prefix DIR]         undo everything
       ./install.sh --demo                                         try it here, without Proxmox

  --dry-run       show each step, do none
  --prefix DIR    where the program goes (default: /opt/pxsched)
  --storage NAME  storage whose snippets get the hookscript (default: local)
  --demo          three QEMU guests for two minutes in a stand-in node; leaves nothing running

Nothing is installed into the system's Python. An interrupted run is finished by the next one, which is also
how to upgrade; files in /etc that you changed are kept.
TEXT
}

action=install dry_run='' prefix=/opt/pxsched storage=''
while [ $# -gt 0 ]; do
    case $1 in
        --demo) action=demo ;;
        --uninstall) action=uninstall ;;
        --dry-run) dry_run=--dry-run ;;
        --prefix) prefix=${2:?--prefix needs a directory}; shift ;;
        --prefix=*) prefix=${1#*=} ;;
        --storage) storage=${2:?--storage needs a name}; shift ;;
        --storage=*) storage=${1#*=} ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
case $prefix in
    / | /usr | /usr/local | /etc | /var | /opt | /home | /root) bad_prefix=1 ;;
    *[!A-Za-z0-9/._-]* | */../* | */..) bad_prefix=1 ;;
    /*) bad_prefix='' ;;
    *) bad_prefix=1 ;;
esac
if [ -n "$bad_prefix" ]; then
    echo "install.sh: --prefix $prefix: give an absolute directory of its own, such as /opt/pxsched" >&2
    exit 2
fi
prefix=${prefix%/}

PATH=$PATH:/usr/sbin:/sbin
python=/usr/bin/python3
log() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }
# Does a step, or only names it.
step() {
    what=$1
    shift
    if [ -n "$dry_run" ]; then log "would $what"; else log "$what"; "$@"; fi
}

# --- Debian packages -------------------------------------------------------------------------------------

# Prints those of COMMAND-OR-FILE:PACKAGE whose first part is not there.
missing_packages() {
    for need; do
        thing=${need%%:*}
        case $thing in
            /*) [ -e "$thing" ] || printf '%s ' "${need#*:}" ;;
            *) command -v "$thing" >/dev/null 2>&1 || printf '%s ' "${need#*:}" ;;
        esac
    done
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    options='-q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3'
    # shellcheck disable=SC2086
    apt-get $options install --no-install-recommends "$@" ||
        { apt-get $options update && apt-get $options install --no-install-recommends "$@"; }
}

require_packages() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086
    if is_root; then
        step "install Debian packages: $missing" apt_install $missing
    else
        die "these Debian packages are missing: $missing
  as root: apt-get install $missing"
    fi
}

# Whether Python $1 has all that pyproject.toml asks for, in versions that serve.
has_modules() {
    [ -x "$1" ] && "$1" -I - "$here/pyproject.toml" <<'PYTHON'
import re, sys, tomllib
from importlib.metadata import PackageNotFoundError, version

def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text)[:3]]

for requirement in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    name, least = requirement.split(">=")
    try:
        if numbers(version(name)) < numbers(least):
            sys.exit(1)
    except PackageNotFoundError:
        sys.exit(1)
PYTHON
}

check_python() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "Python 3.11 or newer is needed: Debian 12 (Proxmox VE 8) or later"
}

python_packages='python3-filelock python3-proxmoxer python3-psutil python3-pyroute2 python3-requests'

# A virtual environment that sees Debian's Python packages where they serve, else with copies of its own.
environment() {
    log "making $1"
    "$python" -m venv --clear --without-pip --system-site-packages "$1"
    # shellcheck disable=SC2086
    has_modules "$1/bin/python" || { is_root && apt_install $python_packages; } || true
    has_modules "$1/bin/python" || private_copies "$1"
}

private_copies() {
    require_packages /usr/share/python-wheels:python3-venv
    log "put private copies of the Python packages into $1"
    "$python" -m venv --clear "$1"
    requirements=$("$python" -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], "requests")' pyproject.toml)
    # shellcheck disable=SC2086
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check $requirements
}

# --- the demo --------------------------------------------------------------------------------------------

demo() {
    require_packages python3:python3 qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio \
        zstd:zstd xz:xz-utils taskset:util-linux
    check_python
    # The guest's kernel is downloaded by name, for which apt must know what there is.
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || ! is_root || [ -n "$dry_run" ] || apt-get -q update
    venv=$here/.venv
    [ -w "$here" ] || venv=${XDG_CACHE_HOME:-$HOME/.cache}/pxsched/venv
    [ -z "$dry_run" ] || { log "would make $venv and run the demo"; return 0; }
    has_modules "$venv/bin/python" || environment "$venv"
    PYTHONPATH=$here exec "$venv/bin/python" -m pxsched sandbox demo
}

# --- a node ----------------------------------------------------------------------------------------------

check_node() {
    problems=''
    [ -d /etc/pve ] && command -v qm >/dev/null 2>&1 ||
        problems="$problems
  - this is no Proxmox VE node (no /etc/pve, no qm); --demo tries pxsched on any Debian machine"
    is_root || problems="$problems
  - root is needed: sudo ./install.sh"
    missing=$(missing_packages python3:python3)
    [ -z "$missing" ] || problems="$problems
  - Debian packages are missing: apt-get install $missing"
    [ -z "$problems" ] || die "cannot install:$problems"
    # shellcheck disable=SC2016
    if [ "$(dpkg-query -W -f '${db:Status-Status}' pxsched 2>/dev/null)" = installed ]; then
        die "pxsched is installed as a Debian package here; use apt for it, or apt-get remove pxsched first"
    fi
}

# Debian's Python packages where they serve, else our own copies in the prefix.
dependencies() {
    # shellcheck disable=SC2086
    { has_modules "$python" && "$python" -I -c 'import requests' 2>/dev/null; } ||
        step "install Debian packages: $python_packages" apt_install $python_packages ||
        log "Debian's packages cannot be had; going on with private copies"
    [ -n "$dry_run" ] || has_modules "$python" || has_modules "$prefix/bin/python" || private_copies "$prefix"
}

# The program: a virtual environment without pip that sees Debian's packages. It is put together under another
# name and renamed, so that the hook never finds half of it.
program() {
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    site=$prefix/lib/$version/site-packages
    [ -x "$prefix/bin/python" ] && [ -d "$site" ] ||
        "$python" -m venv --without-pip --system-site-packages "$prefix"
    rm -rf "$site/.pxsched-new" "$site/.pxsched-old"
    mkdir -p "$site/.pxsched-new" "$prefix/share/pxsched"
    cp -R pxsched/. "$site/.pxsched-new"
    find "$site/.pxsched-new" -name __pycache__ -prune -exec rm -rf {} +
    "$python" -m compileall -q "$site/.pxsched-new" -s "$site/.pxsched-new" -p "$site/pxsched"
    [ ! -d "$site/pxsched" ] || mv "$site/pxsched" "$site/.pxsched-old"
    mv "$site/.pxsched-new" "$site/pxsched"
    rm -rf "$site/.pxsched-old" "$prefix/share/pxsched/hooks"
    cp -R hooks "$prefix/share/pxsched/hooks"
    cat >"$prefix/bin/pxsched.new" <<TEXT
#!$prefix/bin/python -I
from pxsched.cli import entry

entry()
TEXT
    chmod 755 "$prefix/bin/pxsched.new"
    mv "$prefix/bin/pxsched.new" "$prefix/bin/pxsched"
    chmod -R go-w "$prefix"
}

link_command() {
    link=/usr/local/bin/pxsched
    if [ -e "$link" ] && [ ! -L "$link" ]; then
        log "$link is not ours and stays; the command is $prefix/bin/pxsched"
    else
        ln -sfn "$prefix/bin/pxsched" "$link"
    fi
}

install_node() {
    check_node
    check_python
    dependencies
    step "put the program into $prefix" program
    step "link /usr/local/bin/pxsched to it" link_command
    if [ -n "$dry_run" ]; then
        PYTHONPATH=$here "$python" -m pxsched node install --dry-run ${storage:+--storage "$storage"}
        return
    fi
    "$prefix/bin/pxsched" node install ${storage:+--storage "$storage"}
    log "installed. Next: pxsched doctor; pxsched enable VMID"
}

remove_program() {
    rm -rf "$prefix"
    [ "$(readlink /usr/local/bin/pxsched 2>/dev/null)" != "$prefix/bin/pxsched" ] || rm -f /usr/local/bin/pxsched
}

uninstall_node() {
    is_root || die "root is needed: sudo ./install.sh --uninstall"
    if [ -x "$prefix/bin/pxsched" ]; then
        # shellcheck disable=SC2086
        "$prefix/bin/pxsched" node uninstall $dry_run || failed=1
    elif has_modules "$python"; then
        # An installation or uninstallation that was cut short: the checkout finishes it.
        # shellcheck disable=SC2086
        PYTHONPATH=$here "$python" -m pxsched node uninstall $dry_run || failed=1
    else
        log "nothing is installed in $prefix"
    fi
    [ -z "${failed:-}" ] || die "not everything could be put back; the program stays, so that it can be tried again"
    step "remove $prefix" remove_program
}

case $action in
    demo) demo ;;
    install) install_node ;;
    uninstall) uninstall_node ;;
esac
