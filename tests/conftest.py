"""The whole session runs in float64; what must work in float32 says so itself."""

import os
import subprocess
import sys

import jax
import jaxtyping
import pytest


def is_known(flags: str) -> bool:
    """Whether XLA starts with these flags: it ends the process for one that it doesn't know."""
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return not subprocess.run(command, env=environment, capture_output=True).returncode


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)  # for what is spread over devices; all else runs on the first
# Optimising programs that run for milliseconds would take most of the time of the tests. An XLA_FLAGS of your
# own, an empty one as well, leaves the compiler as it comes. Processes of the tests inherit what is set here.
if "XLA_FLAGS" not in os.environ:
    quick = "--xla_cpu_use_fusion_emitters=false"
    os.environ |= {"XLA_FLAGS": quick if is_known(quick) else "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def unchecked(monkeypatch):
    """Types are not checked, as for users: gflow's own errors are to be seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def key():
    """A fixed key; a test that needs several splits it."""
    return jax.random.key(20)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Compiled programs go with the file that made them: a process may hold only so many memory maps."""
    yield
    jax.clear_caches()
