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

from fmcore.compute import Compute, numerics
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Parcel:
    """A job on its way to a worker, and where the last bits of its results must be decided."""

    job: bytes
    device: str
    numerics: dict[str, Any]

    @property
    def name(self) -> str:
        """What tells this parcel from others: its hash."""
        return hashlib.sha256(self.job).hexdigest()


_parcel: Parcel | None = None
_opened: tuple[str, Callable[[Any], Any]] | None = None


def work(item: Any, parcel: Parcel | None = None) -> Any:
    """Compute an item of `parcel`, or of the one that this process was given when it started."""
    global _opened
    parcel = parcel or _parcel
    assert parcel is not None
    torch.set_num_threads(parcel.numerics.get("threads", 1))  # of this thread: Dask has several
    device = torch.device(parcel.device)
    if device.type == "cuda" and _seat is not None:
        device = torch.device("cuda", _seat % torch.cuda.device_count())
    here = numerics(device, Compute())
    if different := [k for k in parcel.numerics if here.get(k) != parcel.numerics[k]]:
        told = ", ".join(f"{k} {here.get(k)} for {parcel.numerics[k]}" for k in different)
        raise ReflowError(
            f"a worker computes other last bits than the stage ({told}); use workers of one kind:"
            " the same torch and the same GPU or CPU"
        )
    if _opened is None or _opened[0] != parcel.name:
        _opened = (parcel.name, pickle.loads(parcel.job).on(device))
    return _opened[1](item)


_seat: int | None = None


def sit(parcel: Parcel, seat: int) -> None:
    """Begin a worker process: keep the parcel, leave Ctrl-C to the parent, die with the parent."""
    global _parcel, _seat
    _parcel, _seat = parcel, seat
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
