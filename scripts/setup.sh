#!/usr/bin/env bash
# Makes .venv and installs the package into it; a second run sees that nothing changed.
# --dense adds the packages for detection and segmentation; --test those and what the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-}
case "$what" in ""|--dense|--test) ;; *) echo "setup: unknown option $what; there are --dense and --test" >&2; exit 2 ;; esac
constraints=${ELSA_CONSTRAINTS:-requirements/tested.txt}
# What an installation depends on; torch's version is known once it is installed.
fingerprint() {
  { pwd; echo "${TORCH_CUDA_ARCH_LIST:-} $([ "${ELSA_CUDA:-auto}" = 0 ] && echo without CUDA)"
    cat requirements.txt requirements/*.txt "$constraints" pyproject.toml setup.py
    find kernels/csrc -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
    cat .venv/lib/python*/site-packages/torch/version.py 2>/dev/null || true
  } | sha256sum | cut -c1-16
}
complete() { [ -f ".venv/.installed$what-$(fingerprint)" ] && { [ "${ELSA_CUDA:-auto}" != 1 ] || ls kernels/_cuda*.so; }; }
if complete >/dev/null 2>&1; then exit 0; fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.12 python3.11 python3.13 python3.10 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then python=$candidate; break; fi
  done
fi
[ -n "$python" ] || { echo "setup: Python 3.10 or newer is needed; PYTHON=/path/to/python names one" >&2; exit 2; }

echo "setup: installing into .venv (torch is large, and the kernels are compiled: some minutes)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
requirements=(-r requirements.txt)
[ -z "$what" ] || requirements+=(-r requirements/dense.txt)
[ "$what" != --test ] || requirements+=(-r requirements/test.txt)
pip=(.venv/bin/python -m pip --disable-pip-version-check install -q)
"${pip[@]}" -c "$constraints" "${requirements[@]}" "setuptools>=77" wheel ninja
[ -z "$what" ] || "${pip[@]}" --no-deps -r requirements/dense_mm.txt
PATH="$PWD/.venv/bin:$PATH" "${pip[@]}" --no-build-isolation --no-deps -e .  # PATH: ninja
# Links make elsa.* a folder on the disk: type checkers and editors see what the interpreter sees, new modules at once.
mkdir -p .venv/links/elsa
for package in core kernels models data engine tools; do ln -sfn "../../../$package" ".venv/links/elsa/$package"; done
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$PWD/.venv/links" > "$site/elsa_links.pth"
cp models/mm/elsa_mm.pth "$site/"  # mmcv finds our operators, whatever is imported first
.venv/bin/python -c "from elsa.kernels import backend_info
for name, state in backend_info().items(): print(f'setup: operator, {name}: {state}')"
rm -f .venv/.installed*
now=$(fingerprint)
touch ".venv/.installed-$now" ".venv/.installed$what-$now"
[ "$what" != --test ] || touch ".venv/.installed--dense-$now"
echo "setup: done; to use it: . .venv/bin/activate"
