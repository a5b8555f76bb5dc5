#!/bin/sh
# Makes .venv and installs xverse into it: `sh tools/install.sh run|test`. The Makefile calls it
# before every target that needs it; when an earlier installation still fits, it does nothing.
#
#   PYTHON=python3.12   the interpreter to use (default: the existing .venv's, else python3)
#   TORCH_INDEX=URL     the package index to take torch from (a CPU build, another CUDA build)
#
# Every other package comes from wherever pip is configured to look. Messages go to stderr.
set -eu

profile=${1:-run}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd -- "$root"

venv=.venv
venv_python=$venv/bin/python
stamp=$venv/.xverse-installed-$profile
torch_from=$venv/.xverse-torch-index
unfinished=$venv/.xverse-unfinished
made_for=$venv/.xverse-folder
cpu_kernels=kernels/xverse_kernels/cpu

say() { printf '%s\n' "$@" >&2; }
fail() { say "$@"; exit 1; }
pip() { PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv_python" -m pip "$@" </dev/null >&2; }
minor_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
pin() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" constraints.txt | head -n 1; }

# Everything that decides what is installed, and whether the C extension can be built now.
fingerprint() {
    {
        cat pyproject.toml constraints.txt setup.py tools/install.sh "$cpu_kernels"/native/*.[ch]
        printf '%s\n' "$torch_index" "${CC:-}"
        for compiler in cc gcc clang; do command -v "$compiler" || true; done
        "$venv_python" -c 'import os, sysconfig
print(os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null || true
    } | cksum
}

# The programs in .venv/bin hold its full path, so a moved checkout needs a new one.
venv_usable() {
    [ "$(cat "$made_for" 2>/dev/null || echo "$root")" = "$root" ] &&
        [ ! -e "$unfinished" ] && [ -x "$venv_python" ] &&
        "$venv_python" -c 'import pip' 2>/dev/null &&
        { [ -z "${PYTHON:-}" ] || [ "$(minor_version "$PYTHON")" = "$(minor_version "$venv_python")" ]; }
}

check_python() {
    command -v "$python" >/dev/null 2>&1 || fail \
        "$python: not found. Install Python 3.10 or newer (Debian, Ubuntu: sudo apt install python3 python3-venv)," \
        "or name another interpreter: make chat PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail \
        "xverse needs Python 3.10 or newer, and $python is $("$python" -c 'import sys; print(sys.version.split()[0])')." \
        "Name a newer one: make chat PYTHON=python3.12"
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    case $python in
        python3 | */python3) package=python3-venv ;;
        *) package=python$(minor_version "$python")-venv ;;
    esac
    fail "$python cannot make virtual environments: a package of your system is missing." \
        "Debian, Ubuntu: sudo apt install $package" \
        "Then run the same command again."
}

torch_installed() {
    "$venv_python" -c 'import importlib.metadata as m, sys
sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' "$(pin torch | cut -d= -f3)" 2>/dev/null
}

announce() {
    say "Installing xverse into $root/$venv"
    if torch_installed && [ "$torch_index" = "$torch_index_before" ]; then
        say "To download: a few small packages, under 100 MB."
        return
    fi
    case "$(uname -s) $(uname -m) ${torch_index:+index}" in
        "Linux x86_64 ")
            say "To download: at most 2.8 GB, nearly all of it PyTorch and its CUDA libraries (5 GB on disk)." \
                "Without an NVIDIA GPU the CPU build of PyTorch will do, 0.5 GB in all (2 GB on disk):" \
                "  press Ctrl-C, then: make chat TORCH_INDEX=https://download.pytorch.org/whl/cpu" ;;
        *" index") say "To download: PyTorch from $torch_index (a CPU build 0.2 GB, a CUDA build up to 3 GB), the rest 0.3 GB." ;;
        *) say "To download: PyTorch and a few small packages, 0.2 to 0.5 GB." ;;
    esac
}

case $profile in
    run) extras= ;;
    test) extras='[test]' ;;
    *) fail "usage: sh tools/install.sh run|test" ;;
esac

torch_index_before=$(cat "$torch_from" 2>/dev/null || true)
torch_index=${TORCH_INDEX:-$torch_index_before}
key=$(fingerprint)

if venv_usable; then
    # What serves the tests serves the user too.
    for done_before in "$stamp" "$venv/.xverse-installed-test"; do
        [ "$(cat "$done_before" 2>/dev/null)" != "$key" ] || exit 0
    done
else
    python=${PYTHON:-python3}
    check_python
    [ ! -e "$venv" ] || say "Making $venv anew: it is incomplete, or made for another Python or folder."
    "$python" -m venv --clear "$venv" >&2
    torch_index_before=
fi

announce
: >"$unfinished"
printf '%s\n' "$root" >"$made_for"
rm -f "$venv"/.xverse-installed-*

# A pip that fails leaves a sound environment. One that is interrupted or killed need not: then the
# mark stays, and the next run begins with an empty one.
attempt() {
    status=0
    pip "$@" || status=$?
    [ "$status" -ne 0 ] || return 0
    [ "$status" -gt 128 ] || rm -f "$unfinished"
    fail "The installation failed; pip says why above. Run the same command again to retry."
}

constraints=constraints.txt
if [ -n "$torch_index" ]; then
    # Another build of torch asks for CUDA libraries of its own.
    constraints=$venv/.xverse-constraints.txt
    sed '/^cuda-/d; /^nvidia-/d' constraints.txt >"$constraints"
fi
attempt install -c "$constraints" setuptools
if [ "$torch_index" != "$torch_index_before" ]; then
    attempt install --index-url "$torch_index" --no-deps --force-reinstall "$(pin torch)"
    printf '%s\n' "$torch_index" >"$torch_from"
fi
key=$(fingerprint) # the environment may not have been there before
attempt install -c "$constraints" --no-build-isolation -e ".$extras"

printf '%s\n' "$key" >"$stamp"
rm -f "$unfinished"
"$venv_python" -c 'import xverse_kernels.cpu._native' 2>/dev/null || say \
    "The fast CPU kernels were not built: for them it takes a C compiler and Python's header files" \
    "(Debian, Ubuntu: sudo apt install gcc python$(minor_version "$venv_python")-dev). Then run the same command again."
say "Installed. The command is $venv/bin/xverse"
