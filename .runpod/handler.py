"""Where RunPod looks for a worker's handler; it lives in `deployments/runpod/worker.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deployments.runpod.worker import main

if __name__ == "__main__":
    sys.exit(main())
