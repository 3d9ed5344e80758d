# Read by the scripts beside it: finds Python, puts uv into the project, makes environments.
# shellcheck shell=sh

set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
uv_version=0.13.9
uv=$root/.uv/tool/bin/uv

# uv compiles no bytecode unless told to, and a server then compiles at each start.
export UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT

fail() {
    echo "$0: $*" >&2
    exit 1
}

find_python() {
    for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
        # The first on PATH may be a shim without a version behind it: ask it.
        if python=$("$candidate" -c 'import sys; print(sys.executable); sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
            export UV_PYTHON="$python"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, and not found on PATH"
}

install_ensurepip() {
    package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$python has no ensurepip: install the package $package"
    fi
    echo "$0: installing $package" >&2
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package"; } \
        </dev/null >&2 || fail "$package could not be installed"
}

install_uv() {
    if [ "$("$uv" --version 2>/dev/null | cut -d' ' -f2)" = "$uv_version" ]; then
        return
    fi
    "$python" -c 'import ensurepip' 2>/dev/null || install_ensurepip
    "$python" -m venv --clear .uv/tool
    .uv/tool/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" </dev/null
}

lock() {
    .uv/tool/bin/python scripts/lock.py --uv "$uv" "$@"
}

# Uses: prepare
prepare() {
    find_python
    install_uv
    settings=$(lock settings)
    eval "$settings"
    lock register
}

# Makes .uv/NAME from the lock, and sets `env` to it. Uses: make_env NAME [uv sync arguments]
make_env() {
    env=$root/.uv/$1
    shift
    lock fill
    stamp="$(cat uv.lock packages/*/pyproject.toml | cksum) $python $*"
    if [ "$(cat "$env/stamp" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    # What is installed already is not verified again, so a changed lock gets a new environment.
    rm -rf "$env"
    # The date that limits resolving is left out: it would hide a mirror's files without dates from
    # the build of our own packages, whose requirements are pinned.
    UV_PROJECT_ENVIRONMENT=$env "$uv" sync --quiet --no-config --frozen "$@" </dev/null
    echo "$stamp" >"$env/stamp"
}

# Gives `--no-install-package NAME`, or what stands in the place of it, for torch and what its build
# for GPUs needs: 4.8 GB. Uses: without_torch [FLAG]
without_torch() {
    sed -n "s/^name = \"\(torch\|triton\|nvidia-.*\|cuda-.*\)\"\$/${1:---no-install-package} \1/p" uv.lock
}

# Sets `torch_wheel` to torch for CPUs, of the lock's version, in a folder that PIP_FIND_LINKS names; to
# nothing where there is none.
find_torch_wheel() {
    version=$(sed -n '/^name = "torch"$/{n;s/^version = "\(.*\)"$/\1/p;}' uv.lock)
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    torch_wheel=$(find ${PIP_FIND_LINKS:-.uv} -maxdepth 1 -name "torch-$version+cpu-$tag-*_$(uname -m).whl" 2>/dev/null | head -1)
}

# As make_env, for what needs torch. The index has torch for GPUs; where there is one for CPUs, that is
# installed.
make_torch_env() {
    find_torch_wheel
    if [ -z "$torch_wheel" ]; then
        make_env "$@"
        return
    fi
    make_env "$@" $(without_torch)
    if [ ! -e "$env/torch" ]; then
        "$uv" pip install --quiet --no-config --no-deps --python "$env" "$torch_wheel" </dev/null
        touch "$env/torch"
    fi
}
