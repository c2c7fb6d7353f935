"""Questions about masks that have exact answers: proofs, differences, counts, what layers can reach."""
