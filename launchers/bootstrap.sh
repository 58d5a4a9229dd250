# shellcheck shell=bash
# Sourced by launch.sh, run.sh, test.sh and slurm/env.sh: reads the site's settings (slurm/cluster.sh, if there is one),
# puts a Python environment that has Baton's packages on PATH, and sets baton_root.
#
# 1. An active conda or venv environment that has the packages is used as it is; nothing is ever installed into it.
# 2. Else .venv in the repository, made or completed by launchers/here/bootstrap.py.
#
# baton_needs=dev asks for the test tools as well; baton_needs=nothing-new forbids to install (a job must not).
# BATON_PYTHON names the Python that makes .venv, BATON_TORCH=cpu|cuda its build of torch, BATON_TORCH_INDEX an
# index that has that build.

baton_root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

baton_use() { # put the environment $1 first
    export VIRTUAL_ENV="$1" PATH="$1/bin:$PATH"
    unset PYTHONHOME
}

baton_module() { # run module $2 of this repository by the Python $1
    PYTHONPATH="$baton_root${PYTHONPATH:+:$PYTHONPATH}" "$1" -P -m "${@:2}" # -P: not of the current directory
}

baton_is_complete() { # whether the environment $1 has everything; prints what it lacks
    local extra=()
    if [ "${baton_needs:-}" = dev ]; then extra=(dev); fi
    baton_module "$1/bin/python" launchers.here.environment ${extra[@]+"${extra[@]}"} 2>/dev/null
}

baton_python() { # print the first supported Python that can make an environment; else say why there is none
    local candidate version found="" no_venv="" PATH="${PATH//"$baton_root/.venv/bin:"/}"
    set -- python3 python3.12 python3.11 python
    if [ -n "${BATON_PYTHON:-}" ]; then set -- "$BATON_PYTHON"; fi
    for candidate in "$@"; do
        version="$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" || continue
        case "$version" in
            3.11.* | 3.12.*)
                if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                    command -v "$candidate"
                    return
                fi
                no_venv="${version%.*}"
                ;;
        esac
        found="$found, $candidate is $version"
    done
    {
        if [ -n "$no_venv" ]; then
            echo "baton: error: Python $no_venv is here, but it cannot make environments: venv or ensurepip is missing."
            echo "  Debian, Ubuntu:  sudo apt install python$no_venv-venv"
        else
            echo "baton: error: Python 3.11 or 3.12 is needed; ${found:+found only: ${found#, }}${found:-found none}"
            echo "  Debian, Ubuntu:  sudo apt install python3 python3-venv    (Debian 12, Ubuntu 24.04 have the right one)"
            echo "  Fedora:          sudo dnf install python3.12"
            echo "  macOS:           brew install python@3.12"
        fi
        echo "  conda:           conda env create -f environment.yml && conda activate baton"
        echo "  elsewhere:       export BATON_PYTHON=/path/to/python3.12"
        echo "Then type the same command again."
    } >&2
    return 1
}

baton_bootstrap() {
    local active python lacking="" venv="$baton_root/.venv"
    for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        if [ -z "$active" ] || [ "$active" = "$venv" ] || [ ! -x "$active/bin/python" ]; then continue; fi
        if lacking="$(baton_is_complete "$active")"; then
            baton_use "$active"
            return
        fi
        lacking="$active lacks ${lacking:-a Python that Baton supports}"
    done
    if [ -x "$venv/bin/python" ]; then
        if cmp -s "$baton_root/constraints.txt" "$venv/baton-stamp"; then
            if [ -e "$venv/baton-cpu-torch" ] && [ -e /proc/driver/nvidia/version ]; then
                echo "baton: .venv has the CPU build of torch, but there is a GPU: rm -rf '$venv' and start again" >&2
            fi
            baton_use "$venv"
            return
        fi
        if [ ! -e "$venv/baton-made" ] && baton_is_complete "$venv" >/dev/null; then
            baton_use "$venv"
            return
        fi
    fi
    if [ "${baton_needs:-}" = nothing-new ]; then
        echo "baton: error: no environment has Baton's packages; type ./launch.sh --help on the login node first" >&2
        return 1
    fi
    if [ -n "$lacking" ]; then
        echo "baton: the active environment $lacking" >&2
        echo "baton: it is left as it is" >&2
    fi
    python="$(baton_python)" || return 1
    baton_module "$python" launchers.here.bootstrap || return 1
    baton_use "$venv"
}

if [ -f "$baton_root/slurm/cluster.sh" ]; then
    # shellcheck source=slurm/cluster.example.sh
    source "$baton_root/slurm/cluster.sh"
fi
baton_bootstrap || exit 1
export PYTHONPATH="$baton_root${PYTHONPATH:+:$PYTHONPATH}"
