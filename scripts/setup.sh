#!/usr/bin/env bash
# Makes .venv and installs the package into it; a second run sees that nothing changed. --test adds what tests need.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-}
case "$what" in ""|--test) ;; *) echo "setup: unknown option $what; only --test is known" >&2; exit 2 ;; esac
constraints=${ELSA_CONSTRAINTS:-requirements/tested.txt}
wanted=$( (pwd; cat requirements.txt requirements/test.txt "$constraints" pyproject.toml) | sha256sum | cut -c1-16)
if [ -f ".venv/.installed$what-$wanted" ]; then exit 0; fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.12 python3.11 python3.13 python3.10 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then python=$candidate; break; fi
  done
fi
[ -n "$python" ] || { echo "setup: Python 3.10 or newer is needed; PYTHON=/path/to/python names one" >&2; exit 2; }

echo "setup: installing into .venv (torch is large: minutes on a slow line)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
requirements=(-r requirements.txt)
[ -z "$what" ] || requirements+=(-r requirements/test.txt)
pip=(.venv/bin/python -m pip --disable-pip-version-check install -q)
"${pip[@]}" -c "$constraints" "${requirements[@]}" "setuptools>=77" wheel
"${pip[@]}" --no-build-isolation --no-deps -e .
rm -f .venv/.installed*
touch ".venv/.installed-$wanted" ".venv/.installed$what-$wanted"
echo "setup: done; to use it: . .venv/bin/activate"
