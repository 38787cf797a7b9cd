"""Asks the whole model about audio: label scores, free and constrained answers, long recordings."""
