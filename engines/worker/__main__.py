"""`python -m engines.worker [STARTED_AT]`: one child process with one loaded target."""

import os
import sys

from engines.worker.worker import main

main()
sys.stderr.flush()
os._exit(0)  # libraries' exit handlers hang or crash often enough, and hold nothing we need
