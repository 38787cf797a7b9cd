"""Audio, manifests and batches: numpy only, no jax."""
