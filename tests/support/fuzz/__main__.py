"""`python -m tests.support.fuzz N` repeats call N."""

import faulthandler
import sys

from tests.support.fuzz.calls import one

if __name__ == "__main__":
    faulthandler.enable()
    print(one(int(sys.argv[1])))
