"""Where RunPod looks for a worker's handler: it starts the worker of `deployments/runpod/`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from deployments.runpod.worker import main

    sys.exit(main())
