"""What real attention does, measured in one pass over its weights, a batch of rows at a time."""
