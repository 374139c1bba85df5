"""The zygote's process: python -m deployments.audio.sandbox DESCRIPTOR PARENT

DESCRIPTOR is the number of its control socket, PARENT the process that started this one.
"""

import socket
import sys

from deployments.audio.sandbox.zygote import Zygote

if __name__ == "__main__":
    Zygote(socket.socket(fileno=int(sys.argv[1])), parent=int(sys.argv[2])).serve()
