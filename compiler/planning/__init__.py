"""Which order and which blocks a mask should run in: exact counts, a cost model, a ranked table."""
