"""The csa_stage1 recipe with a pause before each micro-batch, so that a test can break in.

python -m tests.slurm.paced_csa PACE_FILE ...: the file holds the seconds, and may change meanwhile.
"""

import sys
import time
from pathlib import Path
from typing import Any

import recipes.csa_stage1.train as recipe

if __name__ == "__main__":
    pace = Path(sys.argv.pop(1))
    compute = recipe.contrast

    def paced(*arguments: Any, **settings: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() - began < float(pace.read_text() or 0):
            time.sleep(0.05)
        return compute(*arguments, **settings)

    recipe.contrast = paced
    sys.exit(recipe.main())
