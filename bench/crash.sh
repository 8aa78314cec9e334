#!/bin/bash
# Kills the mount process at random moments under load, and checks after each kill that nothing that
# was acknowledged is lost: as many rounds as you ask for, in each of the three modes.
#
#   sudo bench/crash.sh 300
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./test --prepare
LIBRORUM_CRASH_ROUNDS=${1:-300} exec cargo nextest run \
    --config-file crates/cli/tests/nextest.toml -p librorum --test mount --no-fail-fast \
    -E 'test(kills_at_any_moment)'
