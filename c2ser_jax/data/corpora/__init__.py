"""Corpora as distributed: one small parser per corpus, from file names to utterances.

`python -m c2ser_jax.data.corpora emodb --root DIR --output manifest.jsonl`
"""
