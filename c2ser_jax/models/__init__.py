"""Flax Linen modules and their frozen configs: no files, no tokenizer, no mesh, no I/O."""
