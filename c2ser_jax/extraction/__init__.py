"""The engine behind extract, predict and evaluate: shapes, windows, decoding, running, storing."""
