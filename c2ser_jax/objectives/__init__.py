"""Training objectives: pure functions from arrays to (sum, count)."""
