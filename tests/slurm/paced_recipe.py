"""The lmu_gigaspeech recipe with a pause before each micro-batch, so that a test can break in.

python -m tests.slurm.paced_recipe PACE_FILE ...: the file holds the seconds, and may change meanwhile.
"""

import sys
import time
from pathlib import Path
from typing import Any

import recipes.lmu_gigaspeech.train as recipe

if __name__ == "__main__":
    pace = Path(sys.argv.pop(1))
    compute = recipe.loss_fn

    def paced(*arguments: Any, **settings: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() - began < float(pace.read_text() or 0):
            time.sleep(0.05)
        return compute(*arguments, **settings)

    recipe.loss_fn = paced
    sys.exit(recipe.main())
