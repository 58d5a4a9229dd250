"""Compare settings of this recipe by short training runs: an A/B test, a sweep, or both.

python -m recipes.csa_stage1.bench ab --config recipes/csa_stage1/bench.yaml
python -m recipes.csa_stage1.bench sweep --config recipes/csa_stage1/bench.yaml repeats=1 max_steps=500
python -m recipes.csa_stage1.bench summarize --config recipes/csa_stage1/bench.yaml
python -m recipes.csa_stage1.bench diagnose --config recipes/csa_stage1/bench.yaml

It is `./launch.sh bench` with this recipe's bench.yaml where no other is named: core/bench. How to use it, and what
each setting does: docs/benchmark.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from core.bench.__main__ import main as bench


def main(argv: Sequence[str] | None = None) -> int:
    return bench(argv, description=__doc__, default_config=Path(__file__).with_name("bench.yaml"))


if __name__ == "__main__":
    sys.exit(main())
