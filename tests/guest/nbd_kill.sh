#!/bin/bash
# kill -9 of the daemon, again and again, under fio that verifies and never flushes, on a device of the
# kernel's NBD client. What this had sent to the one that died it sends again after half a minute.
# guest: --timeout 2400 --memory 3G
. "$(dirname "$0")/lib.sh"
load nbd
TRANSPORT=nbd
KILLS=$(long 2 20)
. "$GUEST/shared/kill_under_fio.sh"
