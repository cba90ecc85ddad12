# What the scripts share: progress lines, and a set-up that installs what is missing and nothing else.
#
# Source it, then call `setup`. It owns .venv and the stamp inside it; a start with an up-to-date stamp does
# nothing, needs no network and takes a fraction of a second. Killed in between, it starts over the next time.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/ckptfs-setup
PYTHON_OLDEST=3.11

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Print the first python3 that is new enough, or nothing.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (${PYTHON_OLDEST/./, }))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

# Say whether this python can make virtual environments and compile extensions.
python_has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
python_has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# Print the system packages that are missing; what works by other means (a python of pyenv) is not asked for.
missing_packages() {
    local python
    python=$(find_python)
    command -v fusermount3 >/dev/null || echo fuse3
    command -v gcc >/dev/null || echo gcc
    command -v git >/dev/null || echo git
    command -v rsync >/dev/null || echo rsync
    if ! command -v pkg-config >/dev/null; then
        echo pkg-config libfuse3-dev
    elif ! pkg-config --exists fuse3; then
        echo libfuse3-dev
    fi
    if [ -z "$python" ]; then
        echo python3 python3-dev python3-venv
    else
        python_has_headers "$python" || echo python3-dev
        python_has_venv "$python" || echo python3-venv
    fi
}

install_packages() {
    local as_root=()
    command -v apt-get >/dev/null ||
        fail "these are missing and there is no apt-get to install them; please install what they are called here: $*"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "please run this as root first: apt-get install $*"
        as_root=(sudo)
    fi
    say "installing system packages: $*"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Print what the environment was made from; the stamp holds it.
fingerprint() {
    local file
    {
        for file in "$ROOT"/{pyproject.toml,setup.py,ckptfs/store/*.[ch],ckptfs/store/vendor/*.h}; do
            [ ! -e "$file" ] || cat "$file"
        done
        echo "$ROOT"
        "$1" -c 'import platform, sys; print(sys.version, platform.machine())'
    } | sha256sum
}

make_environment() {
    local python=$1
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null || [ "$("$python" -V)" != "$("$VENV/bin/python" -V)" ]; then
        say "making .venv with $("$python" -V)"
        "$python" -m venv --clear "$VENV"
    fi
    say "installing ckptfs with its test extras into .venv (PyTorch is the big one)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$ROOT[test]"
    fingerprint "$python" >"$STAMP"
}

# Bring the machine to where tests and demo run; afterwards .venv/bin comes first in PATH.
setup() {
    local python packages
    mapfile -t packages < <(missing_packages | tr ' ' '\n')
    [ "${#packages[@]}" -eq 0 ] || install_packages "${packages[@]}"
    python=$(find_python)
    [ -n "$python" ] || fail "Python $PYTHON_OLDEST or newer is needed; set PYTHON to one"
    python_has_headers "$python" || fail "$python has no headers (Python.h); install its development package"
    python_has_venv "$python" || fail "$python cannot make virtual environments; install its venv package"
    if [ "$(fingerprint "$python")" != "$(cat "$STAMP" 2>/dev/null)" ]; then
        rm -f "$STAMP"
        make_environment "$python"
    fi
    export PATH="$VENV/bin:$PATH"
}
