"""Brings published PyTorch checkpoints in and writes their layouts back, without torch."""
