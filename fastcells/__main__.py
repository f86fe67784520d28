"""`python -m fastcells`: the same as the command `fastcells`."""

import sys

from fastcells.charlm.cli import main

sys.exit(main())
