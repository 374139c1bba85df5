"""python -m deployments.runpod [--test_input JSON]"""

import sys

from deployments.runpod.worker import main

if __name__ == "__main__":
    sys.exit(main())
