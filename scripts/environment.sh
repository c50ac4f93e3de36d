# Sourced by demo.sh, test.sh and .ci/run: makes or reuses .venv in the repository and installs nerf into it, editable.
#
#   prepare_environment EXTRAS     for example "" or "dev,colmap,exr"; afterwards $VENV_PYTHON runs
#   prepare_browser                Chromium, for tests of pages
#
# What may be set from outside:
#   PYTHON            the interpreter to make .venv with (default: python3, else python3.13 to python3.10)
#   TORCH_SPEC        what to install as torch (default: torch==2.13.0+cpu without an NVIDIA driver, torch with one)
#   PIP_EXTRA_INDEX   one more package index to take torch from (default: PyTorch's CPU index when no other index that
#                     pip knows has the CPU build; "" for none)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
VENV_PYTHON="$VENV/bin/python"
PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
TORCH_TESTED=2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "-- $*"; }
fail() { printf '%s\n' "error: $*" >&2; exit 1; }

is_new_enough() { # an interpreter that runs, is 3.10 or newer, and is CPython
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() { # prints an interpreter of at least 3.10
    local name
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || fail "PYTHON is $PYTHON, which is no Python 3.10 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if is_new_enough "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "nerf needs Python 3.10 or newer, and found $(python3 --version 2>/dev/null || echo no Python): install one or set PYTHON"
}

has_nvidia_driver() {
    [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }
}

quietly() { # runs a command with its output in a log, and shows the log's end when it fails
    local log="$VENV/install.log"
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 25 "$log" >&2
        return 1
    fi
}

install_torch() { # install_torch PYTHON: torch as this machine needs it, unless that environment has it already
    local python=$1 spec=${TORCH_SPEC:-} index=${PIP_EXTRA_INDEX-} word="torch"
    if [ -z "$spec" ] && "$python" -c 'import torch' >/dev/null 2>&1; then
        return
    fi
    if [ -z "$spec" ]; then
        if [ "$(uname -s)" != Linux ]; then
            spec="torch" # the builds for macOS hold no CUDA
        elif has_nvidia_driver; then
            spec="torch" word="torch for the NVIDIA driver that is here (several GB)"
        else
            # the plain build for Linux brings gigabytes of CUDA, so ask for the CPU build and for nothing else
            spec="torch==$TORCH_TESTED+cpu" word="torch (CPU build, about 200 MB)"
            if [ -z "${PIP_EXTRA_INDEX+set}" ] &&
                ! "$python" -m pip index versions torch 2>/dev/null | grep -qF "$TORCH_TESTED+cpu"; then
                index=$PYTORCH_CPU_INDEX
            fi
        fi
    fi
    say "installing $word"
    quietly "$python" -m pip install "$spec" ${index:+--extra-index-url "$index"} ||
        fail "could not install $spec${index:+ with the index $index}; set TORCH_SPEC and PIP_EXTRA_INDEX to take torch from elsewhere (TORCH_SPEC=torch is the build with CUDA, several GB)"
}

prepare_environment() {
    local extras=$1 python stamp="$VENV/installed" current
    if [ -d "$VENV" ]; then
        is_new_enough "$VENV_PYTHON" || fail "$VENV is there but its Python does not run: delete that folder and try again"
    else
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        if ! "$python" -m venv "$VENV" >/dev/null 2>&1; then
            rm -rf "$VENV" # half of one, made just now
            fail "'$python -m venv' does not work here (on Debian or Ubuntu: apt install python3-venv)"
        fi
    fi
    install_torch "$VENV_PYTHON"
    current="$extras $(cat "$ROOT/pyproject.toml" "$ROOT/setup.py" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$current" ] || ! "$VENV_PYTHON" -c 'import nerf' >/dev/null 2>&1; then
        say "installing nerf and what it needs"
        quietly "$VENV_PYTHON" -m pip install -e "$ROOT${extras:+[$extras]}" || fail "could not install nerf (see above and $VENV/install.log)"
        printf '%s\n' "$current" >"$stamp"
    fi
    # says what was built; compiles again only when the sources have changed
    if ! "$VENV_PYTHON" "$ROOT/nerf/kernels/build.py"; then
        say "for the fast kernels install a C++ compiler (Debian or Ubuntu: apt install g++; or: $VENV_PYTHON -m pip install ziglang)"
    fi
}

prepare_browser() { # Chromium, in which pages are tested; where it cannot be installed those tests are skipped
    if ! command -v chromium >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing chromium for the tests of pages"
        quietly timeout 300 apt-get install -y --no-install-recommends chromium || say "chromium could not be installed"
    fi
}
