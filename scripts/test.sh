#!/usr/bin/env bash
# Sets up and runs all checks and tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh --test
export OMP_WAIT_POLICY=PASSIVE
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes of one thread each take less time than one of two; a file's tests share what its fixtures made.
exec env OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
