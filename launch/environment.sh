# shellcheck shell=bash
# The virtual environment of the other scripts, which source this file from the repository root.
#
# prepare_environment makes .venv, installs requirements.txt and this package into it, and sets VENV_PYTHON.
# PYTHON is the interpreter that makes the environment (default python3). A stamp file records which
# requirements are installed, so a second run needs no network.
#
# read_arguments and run are for scripts that take [--dry-run] CONFIG [--config.a.b=value ...].
#
# keep_freed_memory makes training on CPU cores faster if jemalloc is installed.

prepare_environment() {
    local python="${PYTHON:-python3}" root version expected stamp
    root="$(pwd)"
    stamp="$root/.venv/installed"
    VENV_PYTHON="$root/.venv/bin/python"

    if ! command -v "$python" >/dev/null 2>&1; then
        echo "No Python found as '$python'. Install Python 3.11 or newer, or set PYTHON=/path/to/python3." >&2
        return 1
    fi
    if ! version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"; then
        echo "'$python' does not run. Set PYTHON to a Python 3.11 or newer." >&2
        return 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed, '$python' is $version. Set PYTHON=/path/to/a/newer/python3." >&2
        return 1
    fi

    # The root is in the stamp because an editable install points at it: a moved checkout installs again.
    expected="$version $root $(cat requirements.txt pyproject.toml | cksum)"
    if [[ -x "$VENV_PYTHON" && -f "$stamp" && "$(cat "$stamp")" == "$expected" ]]; then
        return 0
    fi

    echo "Preparing .venv with Python $version (once; a few minutes with a fast network)"
    if ! "$python" -m venv --clear "$root/.venv"; then
        echo "Could not make $root/.venv: is the venv module installed (Debian and Ubuntu: python3-venv)," \
            "and is there room on the disk?" >&2
        return 1
    fi
    if ! { "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt \
        && "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --editable .; }; then
        echo "Could not install requirements.txt into .venv. The first run needs the network (or a local" \
            "package mirror set up for pip); check it and run this again." >&2
        return 1
    fi
    printf '%s' "$expected" >"$stamp"
}

# On CPUs, XLA allocates temporary memory from the C library at every call. glibc returns it to the kernel each time,
# which maps and clears it again: half the time of a training step. jemalloc keeps it. So does glibc with
# MALLOC_ARENA_MAX=1 and no mmap, but its single pool becomes fragmented within minutes and slow to search.
keep_freed_memory() {
    local library
    if [[ -n "${LD_PRELOAD:-}" || "$(uname -s)" != Linux ]]; then
        return 0
    fi
    library="$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | awk '/libjemalloc\.so\.2 / { print $NF; exit }')" || true
    if [[ -n "$library" ]]; then
        export LD_PRELOAD="$library" MALLOC_CONF="${MALLOC_CONF:-dirty_decay_ms:-1,muzzy_decay_ms:-1}"
    else
        echo "On CPU cores this is about 1.8 times as fast with jemalloc (apt-get install libjemalloc2)."
    fi
}

# Reads CONFIG, --dry-run and overrides in any order; sets dry, config and the list overrides. Anything else is an error.
read_arguments() {
    local word
    dry=0 config="" overrides=()
    for word in "$@"; do
        case "$word" in
        --dry-run) dry=1 ;;
        --config.*=* | --quiet | --stage=*) overrides+=("$word") ;;
        *.py) [[ -z "$config" ]] && config="$word" || config="?" ;;
        *) config="?" ;;
        esac
        if [[ "$config" == "?" ]]; then
            echo "'$word' is not expected here" >&2
            break
        fi
    done
    if [[ ! -f "$config" ]]; then
        echo "usage: bash $0 [--dry-run] configs/NAME.py [--config.a.b=value ...]" >&2
        exit 2
    fi
}

# Runs a command, or prints it in a dry run.
run() {
    if [[ $dry == 1 ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}
