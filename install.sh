#!/bin/sh
# Installs pxsched on a Proxmox VE node, tries it on any Debian machine, or removes it. See --help.
set -eu
here=$(dirname "$(readlink -f "$0")")
cd "$here"

usage() {
    cat <<'TEXT'
usage: ./install.sh [--dry-run] [--prefix DIR] [--storage NAME]    install on this Proxmox VE 8 or 9 node
       ./install.sh --uninstall [--dry-run] [--remove-stub]        undo everything
       ./install.sh --demo                                         try it here, without Proxmox
       ./install.sh --shell                                        a stand-in node to play with
       ./install.sh --clean [--dry-run]                            delete what these two have kept

  --dry-run       show each step, do none
  --prefix DIR    where the program goes (default: /opt/pxsched): a new or empty directory
  --storage NAME  storage whose snippets get the hookscript (default: local)
  --remove-stub   leave no hookscript that only lets VMs start: Proxmox does not start a VM whose hookscript is
                  missing, and snapshots and backups may name it
  --demo          three QEMU guests for two minutes in a stand-in node; leaves nothing running
  --shell         a shell in a stand-in node, with `qm` and `pxsched`; its guests end with it
  --clean         deletes the environment and the guests' kernel in ~/.cache/pxsched, and names the Debian
                  packages that were installed for them

Nothing is installed into the system's Python. An interrupted run is finished by the next one, which is also
how to upgrade; files in /etc that you changed are kept. What was installed is listed in
/var/lib/pxsched/manifest.json; only what is listed there, and was not changed, is ever removed.
TEXT
}

action=install dry_run='' prefix='' storage='' remove_stub=''
while [ $# -gt 0 ]; do
    case $1 in
        --demo | --shell | --clean) action=${1#--} ;;
        --uninstall) action=uninstall ;;
        --dry-run) dry_run=--dry-run ;;
        --remove-stub) remove_stub=--remove-stub ;;
        --prefix) prefix=${2:?--prefix needs a directory}; shift ;;
        --prefix=*) prefix=${1#*=} ;;
        --storage) storage=${2:?--storage needs a name}; shift ;;
        --storage=*) storage=${1#*=} ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; printf 'install.sh: there is no option %s\n' "$1" >&2; exit 2 ;;
    esac
    shift
done
case $prefix in
    *[!A-Za-z0-9/._-]* | */../* | */..) bad_prefix=1 ;;
    '' | /*) bad_prefix='' ;;
    *) bad_prefix=1 ;;
esac
if [ -n "$bad_prefix" ]; then
    echo "install.sh: --prefix $prefix: give an absolute directory of its own, such as /opt/pxsched" >&2
    exit 2
fi

PATH=$PATH:/usr/sbin:/sbin
python=/usr/bin/python3
log() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
# What concerns the program's own directory: with nothing but Python, from this checkout.
place() { PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$python" -m pxsched.setup "$@"; }
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

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

# A machine whose lists were never fetched knows no package at all.
apt_look_up() {
    for package; do
        apt-cache show "$package" >/dev/null 2>&1 || { apt_get update; return; }
    done
}

apt_install() {
    note_packages "$@"
    apt_look_up "$@" || return
    apt_get install --no-install-recommends "$@" ||
        { apt_get update && apt_get install --no-install-recommends "$@"; }
}

# shellcheck disable=SC2016
is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

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

cache=${PXSCHED_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pxsched}
venv=$cache/venv

# Remembers which Debian packages the demo brings.
note_packages() {
    case $action in demo | shell) mkdir -p "$cache" ;; *) return 0 ;; esac
    for package; do
        is_installed "$package" || printf '%s\n' "$package" >>"$cache/packages"
    done
}

# Runs `pxsched sandbox $action` from this checkout.
sandbox() {
    require_packages python3:python3 qemu-system-x86_64:qemu-system-x86
    [ -z "$dry_run" ] || { log "would make $venv and run pxsched sandbox $action"; return 0; }
    check_python
    # The guest's kernel is downloaded by name.
    [ -d "$cache/kernel" ] || ! is_root || apt_look_up linux-image-cloud-amd64 || true
    has_modules "$venv/bin/python" || environment "$venv"
    result=0
    PYTHONPATH=$here "$venv/bin/python" -m pxsched sandbox "$action" || result=$?
    log "Kept: the program's environment, in $venv."
    [ ! -s "$cache/packages" ] || log "Installed: the Debian packages $(xargs <"$cache/packages")."
    log "./install.sh --clean deletes what is kept; ./install.sh --shell is such a node to play with."
    exit $result
}

clean() {
    [ ! -e "$venv/pyvenv.cfg" ] || step "delete $venv" rm -rf "$venv"
    step "delete the guests' files" env PYTHONPATH="$here" "$python" -m pxsched sandbox clean
    [ ! -s "$cache/packages" ] ||
        log "the Debian packages that it brought go with: apt-get purge --autoremove $(xargs <"$cache/packages")"
    [ -n "$dry_run" ] || { rm -f "$cache/packages"; rmdir "$cache" 2>/dev/null || true; }
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
    no_package "use apt for it, or apt-get remove pxsched first"
}

no_package() { ! is_installed pxsched || die "pxsched is installed as a Debian package here: $1"; }

# Debian's Python packages where they serve, else copies of our own in the prefix.
dependencies() {
    # shellcheck disable=SC2086
    { has_modules "$python" && "$python" -I -c 'import requests' 2>/dev/null; } ||
        step "install Debian packages: $python_packages" apt_install $python_packages ||
        log "Debian's packages cannot be had; going on with private copies"
    if [ -n "$dry_run" ] || has_modules "$python" || has_modules "$prefix/bin/python"; then return 0; fi
    require_packages /usr/share/python-wheels:python3-venv
    private=--private
}

install_node() {
    check_node
    check_python
    : "${prefix:=$(place installed 2>/dev/null || true)}" "${prefix:=/opt/pxsched}" "${private:=}"
    place check --prefix "$prefix"
    dependencies
    # shellcheck disable=SC2086
    step "put the program into $prefix, linked from /usr/local/bin/pxsched" place put --prefix "$prefix" $private
    if [ -n "$dry_run" ]; then
        PYTHONPATH=$here "$python" -m pxsched node install --dry-run ${storage:+--storage "$storage"}
        return
    fi
    "$prefix/bin/pxsched" node install ${storage:+--storage "$storage"}
    log "installed. Next: pxsched doctor; pxsched enable VMID"
}

uninstall_node() {
    is_root || die "root is needed: sudo ./install.sh --uninstall"
    no_package "apt-get remove pxsched"
    installed=$(place installed ${prefix:+--prefix "$prefix"})
    if [ -n "$installed" ] && "$installed/bin/pxsched" node uninstall --help >/dev/null 2>&1; then
        # shellcheck disable=SC2086
        "$installed/bin/pxsched" node uninstall $dry_run $remove_stub || failed=1
    elif has_modules "$python"; then
        # It was cut short, left a stub, or is of a Python that is gone: the checkout goes on.
        # shellcheck disable=SC2086
        PYTHONPATH=$here "$python" -m pxsched node uninstall $dry_run $remove_stub || failed=1
    elif [ -z "$installed" ]; then
        log "nothing is installed"
    fi
    [ -z "${failed:-}" ] || die "not everything could be done; the program stays, so that it can be tried again"
    # shellcheck disable=SC2086
    place remove ${prefix:+--prefix "$prefix"} $dry_run
}

case $action in
    demo | shell) sandbox ;;
    clean) clean ;;
    install) install_node ;;
    uninstall) uninstall_node ;;
esac
