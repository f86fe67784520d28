"""`python -m tests.support.fuzz N [bfloat16]` repeats call N."""

import faulthandler
import sys

from tests.support.fuzz.calls import one

if __name__ == "__main__":
    faulthandler.enable()
    print(one(int(sys.argv[1]), *sys.argv[2:]))
