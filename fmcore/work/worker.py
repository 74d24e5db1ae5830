"""What a worker process does: it keeps one job and computes the items that it is given."""

import hashlib
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from fmcore import own
from fmcore.settings import ReflowError
from fmcore.work.compute import Compute, numerics


@dataclass(frozen=True)
class Payload:
    """A pickled job, and the numerics that its worker must have."""

    job: bytes
    device: str
    numerics: dict[str, Any]
    classes: tuple[tuple[str, str], ...] = ()
    """The user's own classes that the job may hold, with the folders of their projects."""

    @property
    def name(self) -> str:
        """The hash that identifies this payload."""
        return hashlib.sha256(self.job).hexdigest()


_payload: Payload | None = None
_opened: tuple[str, Callable[[Any], Any]] | None = None


def work(item: Any, payload: Payload | None = None) -> Any:
    """Compute an item of `payload`, or of the payload that this process got at its start."""
    global _opened
    payload = payload or _payload
    assert payload is not None
    torch.set_num_threads(payload.numerics.get("threads", 1))  # of this thread: Dask has several
    device = torch.device(payload.device)
    if device.type == "cuda" and _number is not None:
        device = torch.device("cuda", _number % torch.cuda.device_count())
    here = numerics(device, Compute())
    if different := [k for k in payload.numerics if here.get(k) != payload.numerics[k]]:
        told = ", ".join(f"{k} {here.get(k)} for {payload.numerics[k]}" for k in different)
        raise ReflowError(
            f"a worker would round differently than the stage ({told}); use workers of one kind:"
            " the same torch and the same GPU or CPU"
        )
    if _opened is None or _opened[0] != payload.name:
        own.use(payload.classes)
        _opened = (payload.name, pickle.loads(payload.job).on(device))
    return _opened[1](item)


_number: int | None = None


def start_worker(payload: Payload, number: int) -> None:
    """Start a worker: keep the payload, ignore Ctrl-C, exit when the parent exits."""
    global _payload, _number
    _payload, _number = payload, number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
