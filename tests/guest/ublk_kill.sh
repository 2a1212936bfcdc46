#!/bin/bash
# kill -9 of the daemon, again and again, under fio that verifies and never flushes, on a ublk device.
# guest: --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
load ublk_drv
TRANSPORT=ublk
KILLS=$(long 6 20)
. "$GUEST/shared/kill_under_fio.sh"
