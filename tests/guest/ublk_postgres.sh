#!/bin/bash
# kill -9 of the daemon, again and again, under PostgreSQL on ext4 on a ublk device.
# guest: --timeout 1200 --memory 3G
. "$(dirname "$0")/lib.sh"
load ublk_drv
TRANSPORT=ublk
KILLS=$(long 5 20)
. "$GUEST/shared/kill_under_postgres.sh"
