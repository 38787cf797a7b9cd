"""These tests compile fast: one cache, since many train the same tiny program, and few passes."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compile_fast(tmp_path_factory):
    """Compiles each program once for all tests here, then puts the settings back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(names[1], 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)
