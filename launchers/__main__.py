"""`python -m launchers`: what ./launch.sh runs once there is an environment."""

import sys

from launchers.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
