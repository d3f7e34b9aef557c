#!/usr/bin/env bash
# The site of docs/: docs/build.sh makes it in exp/docs/site; docs/build.sh serve shows it while you write. Any warning,
# such as a link to a heading that is not there, is an error. Its packages (conf/requirements/docs.txt) go to
# exp/docs/packages.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
cd -P "$(dirname "$0")/.." || exit 1
. ./path.sh
set -euo pipefail
out=$WORK_DIR/exp/docs
if ! cmp -s conf/requirements/docs.txt "$out/packages/.ready"; then
  rm -rf "$out/packages"
  mkdir -p "$out"
  "$ESSENCE_PYTHON" -m pip install -q --disable-pip-version-check --target "$out/packages" -r conf/requirements/docs.txt
  cp conf/requirements/docs.txt "$out/packages/.ready"
fi
export PYTHONPATH=$out/packages:$PYTHONPATH NO_MKDOCS_2_WARNING=1 # no advertisement in the log
if [ "${1-}" = serve ]; then exec "$ESSENCE_PYTHON" -m mkdocs serve --strict; fi
"$ESSENCE_PYTHON" -m mkdocs build --strict -q -d "$out/site"
echo "$0: $out/site/index.html"
