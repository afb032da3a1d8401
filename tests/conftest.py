"""The whole session runs in float64; what must work in float32 says so itself."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def key():
    """A fixed key; a test that needs several splits it."""
    return jax.random.key(20)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Compiled programs go with the file that made them: a process may hold only so many memory maps."""
    yield
    jax.clear_caches()
