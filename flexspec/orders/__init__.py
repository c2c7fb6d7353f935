"""Orders, one family a file; `flexspec.order` has them all."""
