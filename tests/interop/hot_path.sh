#!/bin/bash
# What a read and a write cost, in instructions and system calls beside the least a server can do, has not grown.
. "$(dirname "$0")/lib.sh"

$PYTHON "$TESTS/../perf/guard.py"
