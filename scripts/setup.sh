#!/bin/sh
# Makes .venv from requirements.lock and installs the members into it. Does nothing when it is up to date.
# Set PYTHON to choose an interpreter; it must be Python 3.11.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.quorate-installed
members=$(ls -d shared/*/ registry/ config-center/ gateway/ services/*/ | sed 's,/$,,' | while read -r folder; do
    [ -f "$folder/pyproject.toml" ] && echo "$folder"
done)
# What was installed is known by its content: the lock, the members' projects, and where the checkout stands.
wanted=$({ pwd; cat requirements.lock scripts/setup.sh; for m in $members; do echo "$m"; cat "$m/pyproject.toml"; done; } | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

fail() {
    echo "quorate: $1" >&2
    shift
    for line in "$@"; do echo "         $line" >&2; done
    exit 1
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "Python 3.11 was not found (this machine has: $(python3 --version 2>/dev/null || echo 'no python3'))." \
    "Install Python 3.11, or point PYTHON at it: make up PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    fail "$python is $("$python" --version 2>&1 || true), but the locked dependencies are for Python 3.11." \
        "Point PYTHON at a Python 3.11: make up PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module." "On Debian and Ubuntu: apt-get install python3.11-venv"

started=$(date +%s)
echo "Setting up .venv (once; takes about a minute)"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    rm -rf .venv
    echo "  1/3 creating the virtual environment with $("$python" --version)"
    "$python" -m venv .venv
else
    echo "  1/3 the virtual environment is there"
fi
rm -f "$stamp"
count=$(grep -c '^[a-z0-9]' requirements.lock)
echo "  2/3 installing $count locked packages"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock ||
    fail "the locked packages could not be installed; pip's message is above." \
        "Nothing is broken: run the same command again once the cause is gone."
echo "  3/3 installing the members"
editables=""
for member in $members; do editables="$editables -e ./$member"; done
# shellcheck disable=SC2086  # one argument a member is meant
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $editables
echo "$wanted" >"$stamp"
echo "  done in $(($(date +%s) - started)) s"
