"""The compilation cache: on by default, off on request, never a reason to fail."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from c2ser_jax.compilation import VARIABLE, enable_compilation_cache


@pytest.fixture(autouse=True)
def put_back():
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_the_default_place_is_the_users_cache_and_small_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = enable_compilation_cache()
    assert place is not None and place.parent == tmp_path / "c2ser_jax"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
    assert enable_compilation_cache() == place


@pytest.mark.parametrize("name", [VARIABLE, "JAX_COMPILATION_CACHE_DIR"])
def test_another_place_can_be_named(monkeypatch, tmp_path, name):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "a" / "b"))
    assert enable_compilation_cache() == Path(tmp_path / "a" / "b")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")


def test_off_means_off(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "off")
    assert enable_compilation_cache() is None
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(3))
    assert not jax.config.jax_enable_compilation_cache


def test_a_place_that_cannot_be_written_costs_only_the_cache(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "cache"))
    assert enable_compilation_cache() is None
    assert VARIABLE in caplog.text
