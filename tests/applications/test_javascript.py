"""Libraries for Node.js, unmodified: what each script of this folder does with them works against a node.

The versions are those of package-lock.json; `make test` fetches them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import NodeProcess

HERE = Path(__file__).parent
PACKAGES = Path(sys.prefix) / "npm" / "node_modules"
RUN_S = 120


@pytest.mark.parametrize("script", sorted(HERE.glob("*.js")), ids=lambda script: script.stem)
def test_script(script: Path, node: NodeProcess) -> None:
    assert PACKAGES.is_dir(), "the packages are not installed: `make test` sees to that"
    command = ["node", script.name, str(node.port)]
    environment = os.environ | {"NODE_PATH": str(PACKAGES)}
    done = subprocess.run(
        command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr
