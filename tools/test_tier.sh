#!/bin/sh
# Runs the tests of one marker: `sh tools/test_tier.sh slow|gpu [pytest options]`.
# pytest exits 5 when it collects none. That is right only while no test file names the marker.
set -eu

marker=$1
shift
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)"

case $marker in
    slow) expression='slow and not gpu' ;;
    *) expression=$marker ;;
esac

status=0
.venv/bin/python -m pytest -m "$expression" "$@" || status=$?
if [ "$status" -eq 5 ] && ! grep -rqE --include='*.py' "mark\.$marker\b" tests; then
    echo "There are no tests marked $marker."
    exit 0
fi
exit "$status"
