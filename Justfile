# One place for every routine. `just` itself comes from the registry (rust-just, in the dev extra):
# commands are taken from the environment that this `just` is installed in.
export PATH := parent_directory(just_executable()) + ":" + env("PATH")
set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
    @just --list

# The embedded default, end to end: procedural objects to a report. No network, GPU or display.
demo dir="runs/demo":
    bash examples/demo.sh {{quote(dir)}}

# The same line on a folder of real meshes, for example ../shared/assets/cc0-meshes.
demo-assets assets dir="runs/demo-assets":
    bash examples/demo_assets.sh {{quote(assets)}} {{quote(dir)}}

# The fast suite: under 10 minutes on 2 cores. A process a core, one thread each; in the order of the
# files, which leaves no long one for the end. Bytecode is kept, or all that tests start compile anew.
test *args:
    OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= python -m pytest \
        -n logical --dist loadscope --no-loadscope-reorder {{args}}

# Everything, the slow tests included, one after another: some need the machine for themselves.
test-all *args:
    python -m pytest -m "slow or not slow" {{args}}

# The fast suite with the oldest versions that pyproject.toml allows. They warn where newer ones
# do not, so warnings are no errors here.
test-lowest *args:
    rm -rf .venv-lowest
    uv venv --quiet .venv-lowest
    uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e ".[dev]"
    OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv-lowest/bin/python -m pytest \
        -n logical --dist loadscope --no-loadscope-reorder -W ignore {{args}}

# Do the installed packages fit together, and is a weakness known of any? The second needs a network.
audit:
    python -m pip check
    uv tool run pip-audit --requirement constraints.txt --no-deps --disable-pip

# Has each package in constraints.txt a wheel, so that nobody needs a compiler? Asks the registry, for
# each platform and Python that the README names.
wheels:
    @for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do \
        for version in 3.11.0 3.12 3.13 3.14; do \
            echo "$platform, Python $version"; \
            MACOSX_DEPLOYMENT_TARGET=14.0 uv pip compile --quiet --only-binary :all: \
                --python-platform "$platform" --python-version "$version" \
                --constraints constraints.txt --extra dev pyproject.toml >/dev/null; \
        done; \
    done

# Format, lint, types, import rules, documentation.
check:
    ruff format --check .
    ruff check .
    mypy
    lint-imports
    DISABLE_MKDOCS_2_WARNING=true mkdocs build --strict --quiet --site-dir site

# The documentation at a local address, renewed as it is written.
docs:
    DISABLE_MKDOCS_2_WARNING=true mkdocs serve

# Ratios against named baselines, in one run on one core. Needs the bench extra for all of them.
bench *args:
    python -m tests.bench {{args}}
