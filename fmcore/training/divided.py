"""A training whose weights, moments and averages are divided among the processes of a group.

torch's FSDP2 (`fully_shard`) brings the weights of a block together while it is computed, and sends
each process its part of their gradient; a process keeps its rows of each tensor. Checkpoints are
those of torch.distributed.checkpoint in safetensors, a file for each process, which any number of
processes reads: nothing is unpickled.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmcore.checked import FILES, commit, read_json, sealed, sha256, sync
from fmcore.network.build import VelocityNetwork
from fmcore.network.images import DiT
from fmcore.settings import ReflowError
from fmcore.training.checkpoint import (
    CONTINUED,
    FILE,
    State,
    averages_of,
    continue_state,
    fill_from_file,
    load_state,
    note_of,
    read_checkpoint,
    restore,
    save_state,
)
from fmcore.training.fit import Train, new_state
from fmcore.training.processes import Group
from fmcore.training.recompute import blocks_of

FOLDER = "divided"
"""The folder of the scratch folder that has checkpoints of this kind, each in its own folder."""
NOTE = "note.json"
"""The file of a checkpoint that is written last: step, history, and the sha256 of the others."""
KEPT = 2
"""Checkpoints that stay: the last, and the one before it in case the last is damaged."""


def states(network: VelocityNetwork, settings: Train, group: Group) -> tuple[State, State | None]:
    """Return the state before the first step, and the whole one that `gather` fills.

    They are one and the same unless the group divides the state; then the whole one is on the CPU
    of the process that leads, and None on the others.
    """
    if not group.divided:
        state = new_state(network, settings)
        return state, state
    if any(not p.dim() for p in network.parameters()):
        raise ReflowError("train.shard full: a weight of the network is a scalar; make it a vector")
    own = deepcopy(network)
    network.cpu()
    whole = new_state(network, settings) if group.leads else None
    return new_state(own, settings, _divide), whole


def _divide(module: nn.Module) -> None:
    """Keep this process's rows of the weights of a module, block by block."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # The velocity is a view of the last layer's output; nothing changes it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    kind = next(module.parameters()).device.type
    mesh = DeviceMesh.from_group(dist.group.WORLD, kind)  # type: ignore[arg-type]
    blocks = blocks_of(module)
    if isinstance(getattr(module, "settings", None), DiT):
        blocks = blocks[1:]  # diffusers calls an embedding inside the first one from outside it
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


@torch.no_grad()
def gather(state: State, whole: State | None, group: Group) -> State | None:
    """Bring the weights and averages of a state together in the `whole` one; all processes call it.

    None on the processes that have no whole one.
    """
    if not group.divided:
        return whole
    into = {} if whole is None else _weights(whole)
    for name, value in _weights(state).items():
        full = value.full_tensor() if hasattr(value, "full_tensor") else value
        if name in into:
            into[name].copy_(full)
    if whole is not None:
        whole.step, whole.history, whole.continued = state.step, state.history, state.continued
    return whole


def keep(folder: Path, state: State, group: Group) -> None:
    """Write a checkpoint; all processes call it, and only those that have to write something do."""
    if group.divided:
        _save(folder / FOLDER, state, group)
    elif group.leads:
        save_state(folder, state)


def resume(folder: Path, state: State, group: Group) -> bool:
    """Fill `state` from the last good checkpoint in `folder`, of any number of processes.

    Otherwise from that of a training with other settings in its subfolder `CONTINUED`; False if
    there is none. Damage is told by the process that leads.
    """
    say = print if group.leads else _silent
    if _load(folder / FOLDER, state, group, say) or (
        not group.divided and load_state(folder, state, say)
    ):
        return True
    return continue_state(folder / CONTINUED, state, partial(_fill_from, group=group))


def _silent(_: str) -> None: ...


def _weights(state: State) -> dict[str, Tensor]:
    """Return the weights of the network and of its averages, in place, by their names."""
    found = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    for name, average in averages_of(state):
        found |= {f"{name}{k}": v for k, v in average.state_dict().items()}
    return found


def _tensors(state: State) -> dict[str, Tensor]:
    """Return all tensors of a state, in place; moments that are not there yet are made, of 0."""
    found, optimizer = _weights(state), state.optimizer
    for index, weight in enumerate(state.network.parameters()):
        slot = optimizer.state[weight]
        if not slot:
            where = weight.device if weight.device.type == "cuda" else "cpu"
            slot["step"] = torch.zeros((), dtype=torch.float32, device=where)
            slot |= {m: torch.zeros_like(weight.detach()) for m in ("exp_avg", "exp_avg_sq")}
        found |= {f"optimizer.{index}.{key}": value for key, value in slot.items()}
    return found


def _save(folder: Path, state: State, group: Group) -> None:
    """Write a checkpoint to a folder of its own. It counts when its note is there, written last."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    path = folder / f"{state.step:012d}"
    if group.leads:  # what a process that was killed while it wrote has left
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    group.agreed(None)
    try:
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        save(_tensors(state), storage_writer=writer)
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise ReflowError(
            f"{path}: cannot be written ({reason}); free some space and start again"
        ) from None
    files = sorted(file.name for file in path.glob("*.safetensors"))
    own = {name: sha256(path / name) for name in files[group.rank :: group.size]}
    hashes = {name: value for part in group.told(own) for name, value in part.items()}
    if group.leads:
        note = sealed({**note_of(state), FILES: hashes})
        temporary = path / f".{NOTE}.tmp"

        def write() -> None:
            temporary.write_text(json.dumps(note))
            sync(temporary)

        commit(temporary, path / NOTE, write)
        for old in _steps(folder)[KEPT:]:
            shutil.rmtree(folder / old, ignore_errors=True)
    group.agreed(None)


def _steps(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder that were finished, the last one first."""
    return sorted((file.parent.name for file in folder.glob(f"*/{NOTE}")), reverse=True)


def _load(folder: Path, state: State, group: Group, say: Callable[[str], object]) -> bool:
    """Fill `state` from the last checkpoint that is whole; damaged ones are told and removed."""
    steps = group.agreed(_steps(folder))
    for name in steps:
        path = folder / name
        faults = [fault for fault in group.told(_fault(path, group)) if fault]
        if not faults:
            _fill(path, state, group)
            return True
        then = "it starts over" if name == steps[-1] else "the checkpoint before it is tried"
        say(f"warning: {path}: damaged and removed ({faults[0]}); {then}")
        if group.leads:
            shutil.rmtree(path, ignore_errors=True)
    return False


def _fault(path: Path, group: Group) -> str | None:
    """Return what is wrong with a checkpoint, in the files that this process looks at."""
    try:
        stated: dict[str, str] = read_json(path / NOTE)[FILES]
        for name in sorted(stated)[group.rank :: group.size]:
            if sha256(path / name) != stated[name]:
                return f"{name}: its content is not that of its sha256"
        if foreign := {file.name for file in path.glob("*.safetensors")} - set(stated):
            return f"{min(foreign)}: foreign file"
    except (ReflowError, OSError, KeyError) as error:
        return str(error).splitlines()[0]
    return None


def _fill(path: Path, state: State, group: Group) -> None:
    """Fill `state` from a whole checkpoint. Raises ValueError if it has other tensors."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = _tensors(state)
    reader = HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, storage_reader=reader, no_dist=group.size == 1)
    except CheckpointException as error:
        raise ValueError(str(next(iter(error.failures.values()))[0])) from None
    except RuntimeError as error:  # tensors that are missing
        raise ValueError(str(error)) from None
    restore(state, read_json(path / NOTE))


def _fill_from(folder: Path, state: State, group: Group) -> str | None:
    """Fill `state` from a checkpoint of either kind; return its hash, None if there is none."""
    steps = group.agreed(_steps(folder / FOLDER))
    for name in steps:
        path = folder / FOLDER / name
        if not any(group.told(_fault(path, group))):
            _fill(path, state, group)
            return sha256(path / NOTE)
    if steps:
        raise ValueError("each of its checkpoints is damaged")
    if not group.divided:
        return fill_from_file(folder, state)
    found = read_checkpoint(folder / FILE)
    if found is None:
        return None
    tensors, note = found
    own = _tensors(state)
    if lacking := next((name for name in own if name not in tensors), None):
        raise ValueError(f"it has no {lacking}")
    for name, value in own.items():
        given = tensors[name]
        if hasattr(value, "to_local"):
            part: Tensor = value.to_local()
            part.copy_([*given.chunk(group.size), *[given[:0]] * group.size][group.rank])
        else:
            value.copy_(given)
    restore(state, note)
    return sha256(folder / FILE)
