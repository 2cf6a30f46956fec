#!/bin/sh
# Makes .venv from requirements.lock and installs the members into it. Does nothing when it is up to date.
# Set PYTHON to choose an interpreter; it must be Python 3.11.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.quorate-installed
members=$(for folder in shared/*/ registry/ config-center/ gateway/ services/*/; do
    if [ -f "$folder/pyproject.toml" ]; then echo "${folder%/}"; fi
done)
# What was installed is known by its content: the lock, the members' projects, and where the checkout stands.
wanted=$({ pwd; cat requirements.lock scripts/setup.sh; for m in $members; do echo "$m"; cat "$m/pyproject.toml"; done; } | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

fail() {
    echo "quorate: $1" >&2
    shift
    for line in "$@"; do echo "         $line" >&2; done
    exit 1
}

is_python_311() {
    [ "$("$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)" = "3 11" ]
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 && is_python_311 "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "Python 3.11 was not found (this machine has: $(python3 --version 2>/dev/null || echo 'no python3'))." \
        "Install Python 3.11, or point PYTHON at it: make up PYTHON=/path/to/python3.11"
fi
command -v "$python" >/dev/null 2>&1 || fail "there is no interpreter $python (PYTHON names it)." \
    "Point PYTHON at a Python 3.11: make up PYTHON=/path/to/python3.11"
is_python_311 "$python" ||
    fail "$python is $("$python" --version 2>&1 | head -n 1), but the locked dependencies are for Python 3.11." \
        "Point PYTHON at a Python 3.11: make up PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module." "On Debian and Ubuntu: apt-get install python3.11-venv"

# Shows pip's work as a count: on one line of a terminal that is written over, else on a line for every 20 packages.
count_packages() {
    if [ -t 1 ]; then style=terminal; else style=lines; fi
    awk -v total="$1" -v style="$style" -v log_file=.venv/install.log '
        { print >log_file }
        /^ *(Downloading|Using cached|Processing|Ignoring|Requirement already satisfied)/ && !/\.metadata/ {
            done += 1
            if (style == "terminal") printf "\r      %d of %d packages", done, total
            else if (done % 20 == 0) printf "      %d of %d packages\n", done, total
            fflush()
        }
        /^Installing collected/ {
            if (style == "terminal") printf "\r      unpacking %d packages", total
            else print "      unpacking"
            fflush()
        }
        END { if (style == "terminal") printf "\r                              \r" }'
}

# Runs pip with a count of its packages. A pipe has only the last command's result, so that of pip is kept in a file.
install_locked() {
    rm -f .venv/install.ok
    {
        .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
            --require-hashes -r requirements.lock 2>&1 && : >.venv/install.ok
    } | count_packages "$1"
    [ -f .venv/install.ok ]
}

started=$(date +%s)
echo "Setting up .venv (once; takes about a minute)"
if [ ! -x .venv/bin/python ] || ! is_python_311 .venv/bin/python; then
    rm -rf .venv
    echo "  1/3 creating the virtual environment with $("$python" --version)"
    "$python" -m venv .venv
else
    echo "  1/3 the virtual environment is there"
fi
rm -f "$stamp"
count=$(grep -c '^[a-z0-9]' requirements.lock)
echo "  2/3 installing $count locked packages"
if ! install_locked "$count"; then
    tail -n 12 .venv/install.log >&2
    fail "the locked packages could not be installed; the end of pip's output is above, all of it in .venv/install.log." \
        "Nothing is broken: run the same command again once the cause is gone."
fi
echo "  3/3 installing the members"
editables=""
for member in $members; do editables="$editables -e ./$member"; done
# shellcheck disable=SC2086  # one argument a member is meant
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $editables
echo "$wanted" >"$stamp"
echo "  done in $(($(date +%s) - started)) s"
