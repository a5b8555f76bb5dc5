#!/bin/sh
# Runs the gate that compiles all kernels: `sh tools/aot.sh [VERSION] [pytest options]`. With a
# version, that triton is installed beside .venv's own, into .venv/triton-VERSION, from wherever pip
# is configured to look; torch and the rest stay those of .venv.
set -eu

version=${1:-}
[ $# -eq 0 ] || shift
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)"
python=.venv/bin/python

case $version in
    *[!0-9a-z.+]*) echo "not a version of triton: $version" >&2; exit 2 ;;
esac
if [ -n "$version" ]; then
    folder=$PWD/.venv/triton-$version
    if [ ! -e "$folder/.complete" ]; then
        echo "Installing triton $version into $folder (0.2 GB to download)" >&2
        rm -rf "$folder"
        PIP_USER=0 PIP_CONSTRAINT='' "$python" -m pip install --disable-pip-version-check --quiet \
            --no-deps --target "$folder" "triton==$version" </dev/null >&2
        : >"$folder/.complete"
    fi
    PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi
exec "$python" -m pytest tests/kernels/test_aot.py "$@"
