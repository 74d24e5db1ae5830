"""Where pure work is computed: this process, others on this machine, or a Ray or Dask cluster."""

import os
from typing import Literal

import torch
from pydantic import Field

from fmcore.settings import ReflowError, Settings

ACCEPTED = "in-process, processes[:N], ray[:N], ray://HOST:PORT, dask[:N], tcp://HOST:PORT (Dask)"


class Executor(Settings):
    """Where work is computed: not a parameter of a stage, because it does not change a byte.

    `workers` is a number of processes on this machine, `address` that of a running cluster.
    """

    kind: Literal["in-process", "processes", "ray", "dask"] = "in-process"
    workers: int | None = Field(default=None, gt=0)
    address: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Executor":
        """Return the executor that `text` names.

        >>> Executor.parse("processes:4").workers
        4
        >>> Executor.parse("ray://head:10001").kind
        'ray'
        """
        if text.startswith("ray://"):
            return cls(kind="ray", address=text)
        if text.startswith(("tcp://", "tls://")):
            return cls(kind="dask", address=text)
        kind, colon, count = text.partition(":")
        whole = count.isdecimal() and int(count) > 0
        if kind not in ("in-process", "processes", "ray", "dask") or (colon and not whole):
            raise ReflowError(f"executor: expected {ACCEPTED}; got {text!r}")
        if kind == "in-process" and colon:
            raise ReflowError(f"executor: in-process is one process, got {text!r}; use processes:N")
        return cls(kind=kind, workers=int(count) if colon else None)  # type: ignore[arg-type]

    def count(self, device: torch.device) -> int:
        """Return the number of workers here: as given, else one per GPU, or as cores allow."""
        if self.kind == "in-process":
            return 1
        if self.workers:
            return self.workers
        if device.type == "cuda":
            return torch.cuda.device_count()
        return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


IN_PROCESS = Executor()
