"""The zygote: forks a decoder for each job, kills it when it is told to, and tells how it ended."""

import codecs
import gc
import io
import json
import os
import selectors
import signal
import socket
import wave
from contextlib import suppress
from dataclasses import asdict, replace

from deployments.audio.decode import decode_audio
from deployments.audio.sandbox import child, kernel
from deployments.audio.sandbox.confinement import Layers, confine
from deployments.audio.sandbox.limits import Limits, ResourceLimits
from deployments.audio.sandbox.messages import MAX_MESSAGE_BYTES, Ended, Job
from deployments.contract import languages

_DESCRIPTORS_PER_JOB = 4


class Zygote:
    """One thread, and one process for each job.

    control: the socket on which jobs come; its end is the zygote's
    parent: the process that has started this one
    """

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent, self._own = parent, os.getpid()
        self._jobs: dict[int, socket.socket] = {}  # by the decoder's process
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Work until the parent closes the control socket, or dies."""
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:
            return
        prepare()
        self._layers = _layers_that_hold()
        self._announce()
        for end in self._woken, self._waker:
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        # What is collected from now on belongs to one job, and a decoder copies no page for it.
        gc.freeze()
        try:
            while self._turn():
                pass
        finally:
            for process in self._jobs:
                _kill(process)

    def _announce(self) -> None:
        line = json.dumps(asdict(self._layers)).encode() + b"\n"
        os.write(1, line)
        # Nothing more is read there.
        os.dup2(2, 1)

    def _turn(self) -> bool:
        """Do what there is to do; false at the end of the control socket."""
        for key, _ in self._selector.select():
            if key.fileobj is self._control:
                if not self._take_job():
                    return False
            elif key.fileobj is self._woken:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
            else:
                # Nothing is ever sent here, so this is the end of the client's interest.
                self._selector.unregister(key.fileobj)
                _kill(key.data)
        self._reap()
        return True

    def _take_job(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(
            self._control, MAX_MESSAGE_BYTES, _DESCRIPTORS_PER_JOB
        )
        if not message:
            return False
        job_descriptor, reply, source, output = descriptors
        job = socket.socket(fileno=job_descriptor)
        try:
            process = os.fork()
        except OSError:
            # The end of `job` without a word tells the client that there was no decoder.
            job.close()
        else:
            if process == 0:
                wanted = Job.from_bytes(message)
                child.decode(wanted, self._layers, self._own, source, output, reply)
            self._jobs[process] = job
            self._selector.register(job, selectors.EVENT_READ, process)
        for descriptor in (reply, source, output):
            os.close(descriptor)
        return True

    def _reap(self) -> None:
        while self._jobs:
            process, status, usage = os.wait4(-1, os.WNOHANG)
            if process == 0:
                return
            job = self._jobs.pop(process)
            with suppress(KeyError):
                self._selector.unregister(job)
            ended = Ended(
                signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                cpu_s=usage.ru_utime + usage.ru_stime,
            )
            with job, suppress(OSError):
                job.send(ended.to_bytes())


def prepare() -> None:
    """Import what is imported late: a confined process can open no module."""
    for encoding in ("utf-8-sig", "utf-16"):
        codecs.lookup(encoding)
    for name in ("pt-BR", "Brazilian Portuguese", "nonsense"):
        with suppress(languages.UnknownLanguageError):
            languages.find(name)
    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(4 * 800))
    decode_audio(silence, 1.0)


def _layers_that_hold() -> Layers:
    """Try them in a process of their own."""
    ours, theirs = socket.socketpair()
    own = os.getpid()
    process = os.fork()
    if process == 0:
        try:
            layers = confine(ResourceLimits(Limits(), 0, 0.0), own)
            os.write(theirs.fileno(), json.dumps(asdict(layers)).encode())
            os.read(theirs.fileno(), 1)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        told = ours.recv(MAX_MESSAGE_BYTES)
        # Nothing is told where the kernel kills a process that asks for a layer.
        layers = Layers(**json.loads(told)) if told else Layers(None, 0, False)
        try:
            os.kill(process, signal.SIGKILL)
        except PermissionError:
            # Root without the capability to kill the processes of others.
            layers = replace(layers, user=False)
    os.waitpid(process, 0)
    return layers


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
