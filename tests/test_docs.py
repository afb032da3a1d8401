"""The code in the guides runs as it stands, from top to bottom, the way a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = {
    page: "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    for page in [*ROOT.glob("README.md"), *sorted((ROOT / "docs").glob("*.md"))]
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, code in CODE.items() if code], ids=lambda page: page.name)
def test_the_code_of_the_page_runs(page, tmp_path):
    # A process of its own: the guides are for JAX as it comes, in float32.
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", CODE[page]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
