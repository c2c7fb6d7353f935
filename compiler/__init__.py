"""How a pattern becomes blocks, kernels, proofs and pictures."""
