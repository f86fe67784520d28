"""`python -m fastcells`: the same as the command `fastcells`."""

import sys

try:
    from fastcells.charlm.cli import main

    status = main()
except KeyboardInterrupt:  # while torch is loaded, or when all is done
    status = 130
sys.exit(status)
