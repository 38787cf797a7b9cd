"""Turns a language model's logits into answers: generation, label scoring, constraints."""
