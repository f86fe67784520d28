"""How it is measured: programs, guards, clocks, and where a row comes from."""
