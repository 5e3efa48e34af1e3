# Makes the Python environment of a checkout. Sourced by tests/run, tests/fix and deploy/demo.
#
# One environment, .venv in the checkout, at one of two levels: "runtime" holds sockpair and what
# it needs to run, "test" adds the dependency group of that name. A stamp inside says what it was
# made from; while that is unchanged nothing is installed again. The stamp is written last, so an
# environment that was interrupted half way is made anew. A lock on the checkout keeps two callers
# apart.
#
# pip reads dependency groups from version 25.1 on, and Debian 12 has 23.0: so the group is read
# here, and pip gets plain requirements.
#
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
environment=$root/.venv
python=${PYTHON:-python3}
here=${0##*/}

fail() {
    printf '%s: %s\n' "$here" "$*" >&2
    exit 1
}

# Say what is missing, and the command that brings it, before anything is made.
require_python() {
    command -v "$python" >/dev/null ||
        fail "there is no $python; on Debian: apt-get install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old: sockpair needs Python 3.11 or later." \
            "Install one and name it, for example: PYTHON=python3.11 $0"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no module venv; on Debian: apt-get install python3-venv"
}

# What an environment of this level is made from.
stamp_of() {
    printf '%s\n' "$1" "$root"
    "$python" -c 'import sys; print(sys.version); print(sys.base_prefix)'
    sha256sum <"$root/pyproject.toml"
}

is_made() {
    [[ -f $environment/stamp && $(<"$environment/stamp") == "$(stamp_of "$1")" ]]
}

# The requirements of the dependency group "test", one a line.
test_requirements() {
    "$python" - "$root/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["dependency-groups"]["test"], sep="\n")
PYTHON
}

install_level() {
    local level=$1
    local requirements=()
    if [[ $level == test ]]; then
        mapfile -t requirements < <(test_requirements)
        ((${#requirements[@]})) || fail "pyproject.toml has no dependency group \"test\""
    fi
    local clear=()
    if [[ -f $environment/stamp ]]; then
        clear=(--clear)
    fi
    printf '%s: installing sockpair%s into %s\n' \
        "$here" "${requirements[*]:+ with ${requirements[*]}}" "$environment" >&2
    "$python" -m venv "${clear[@]}" "$environment"
    : >"$environment/stamp"
    "$environment/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        --editable "$root" "${requirements[@]}" ||
        fail "pip could not install what pyproject.toml asks for; its message stands above"
    stamp_of "$level" >"$environment/stamp"
}

# Make the environment at a level, unless it is there. "test" serves as "runtime" too.
#
# The first argument is the level.
make_environment() {
    require_python
    local lock
    exec {lock}<"$root"
    flock "$lock"
    if ! is_made "$1" && ! is_made test; then
        install_level "$1"
    fi
    exec {lock}<&-
}
