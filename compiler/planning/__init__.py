"""Which order and block size a mask runs in at the least cost."""
