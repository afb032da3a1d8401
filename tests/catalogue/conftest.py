"""The catalogue lives with the examples, which may not be part of a distribution."""

import sys
from pathlib import Path

CATALOGUE = Path(__file__).parents[2] / "examples" / "catalogue"
collect_ignore_glob = [] if CATALOGUE.exists() else ["test_*.py"]
sys.path.append(str(CATALOGUE))
