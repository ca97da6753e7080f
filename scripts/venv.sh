# Sourced by the other scripts, from any folder: makes .venv on a fresh clone, installs the pins, sets $python.
# A second run compares one checksum and goes on at once.

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python

make_venv() {
  local stamp wanted
  stamp=$root/.venv/.installed
  wanted=$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum)
  if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  local base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed, found $("$base" --version 2>&1 || echo none); set PYTHON=/path/to/python3" >&2
    exit 2
  fi
  echo "setting up $root/.venv (once; a few minutes)" >&2
  "$base" -m venv "$root/.venv"
  # torch first and exactly: another package's range would otherwise choose a newer build with gigabytes of CUDA.
  "$python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/constraints.txt")"
  "$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[dev]"
  echo "$wanted" >"$stamp"
}

make_venv
export PATH="$root/.venv/bin:$PATH"
