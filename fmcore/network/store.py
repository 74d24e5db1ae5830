"""Models on disk.

A model is a directory: `config.json`, `model.safetensors` (EMA weights) and `raw.safetensors` (the
optimiser's own weights). A network of diffusers keeps its EMA weights in `diffusers/` instead, as
`from_pretrained` of diffusers reads them; `power/` has snapshots of power averages, if the training
kept any. Nothing is ever unpickled. config.json has the sha256 of
each of these files and its own, so that a model with a flipped bit is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Discriminator, Tag, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmcore.checked import FILES, hashes, read_checked, read_json, sealed
from fmcore.conditions import table as conditions
from fmcore.matching.interpolant import Objective
from fmcore.network.build import Network, VelocityNetwork, build, table_of, take
from fmcore.network.images import DIFFUSERS, ImageNetwork
from fmcore.network.power import SigmaRel, factors
from fmcore.own import read
from fmcore.scale import Scale
from fmcore.settings import CONVENTION, ReflowError

CONFIG = "config.json"
"""The file of a model's folder that describes it."""
POWER = "power"
"""The folder of a model's folder that has snapshots of its power averages."""


def _kind(given: object) -> str:
    return "word" if isinstance(given, str) else "sigma_rel"


Weights = Annotated[
    Annotated[Literal["ema", "raw"], Tag("word")] | Annotated[SigmaRel, Tag("sigma_rel")],
    Discriminator(_kind),
]
"""Weights of a model: the average, the optimiser's own, or a power average by relative length."""
_WEIGHTS: TypeAdapter[Weights] = TypeAdapter(Weights)


def weights_of(text: str) -> Weights:
    """Return the weights that a text names: ema, raw, or a relative length such as 0.1.

    Raises ReflowError for any other text.
    """
    try:
        return _WEIGHTS.validate_python(text if text in ("ema", "raw") else float(text))
    except ValueError:
        raise ReflowError(
            f"weights {text!r}: expected ema, raw, or the relative length of a power average, from"
            " 0.005 to 0.28"
        ) from None


@dataclass(frozen=True)
class Model:
    """A loaded model: the network, its whole config and the digest that identifies it."""

    network: VelocityNetwork
    config: dict[str, Any]
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [*D] of one sample."""
        return self.network.shape

    @property
    def scale(self) -> Scale:
        """The scale between the data's own units and those in which the model samples."""
        return Scale.of(self.config.get("scale"))

    def label(self, given: int | str) -> int:
        """Return the number of a class that is given by its name or its number.

        A name comes before a number: with classes named 1, 2 and 3, "1" is the first. Raises
        ReflowError for a class that the model does not have.
        """
        names = self.config.get("classes") or []
        if given in names:
            return int(names.index(given))
        table = table_of(self.network)
        if table is not None and (row := table.row(str(given))) is not None:
            return row
        count = self.network.settings.classes
        number = int(given) if str(given).isdecimal() else -1
        if 0 <= number < count:
            return number
        has = f"classes 0 to {count - 1}" if count else "no classes"
        called = f", called {', '.join(names)}" if names and count else ""
        raise ReflowError(f"label {given}: the model has {has}{called}")


def save(
    path: Path,
    network: nn.Module,
    *,
    raw: nn.Module | None = None,
    about: dict[str, Any],
    snapshots: Iterable[Path] = (),
) -> None:
    """Write `network` (EMA weights) and `raw` to the directory `path`; `about` joins the config.

    `snapshots` are the files of power averages, which are copied.
    """
    averaged = isinstance(network, AveragedModel)
    inner = cast(VelocityNetwork, network.module if averaged else network)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "network": inner.settings.model_dump(mode="json"),
        "shape": list(inner.shape),
        "convention": CONVENTION,
        **about,
    }
    if isinstance(inner, ImageNetwork) and inner.of_diffusers:
        inner.save_weights(path)
    else:
        write_tensors(path / "model.safetensors", _weights(inner))
    write_tensors(path / "raw.safetensors", _weights(raw or inner))
    for file in snapshots:
        (path / POWER).mkdir(exist_ok=True)
        shutil.copyfile(file, path / POWER / file.name)
    table = table_of(inner)
    if table is not None and len(table.content) <= conditions.KEPT:
        conditions.write(path, table)
    config[FILES] = hashes(path, besides=CONFIG)
    (path / CONFIG).write_text(_text(sealed(config)))


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def write_tensors(
    path: Path, tensors: dict[str, Tensor], *, about: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; a full disk is an error that names the file."""
    try:
        save_file(tensors, path, metadata=about)
    except (SafetensorError, OSError) as error:
        raise ReflowError(
            f"{path}: cannot be written ({error}); free some space and start again"
        ) from error


def snapshot_file(step: int) -> str:
    """Return the name of the file with the power averages after a step.

    >>> snapshot_file(250)
    'step_000000250.safetensors'
    """
    return f"step_{step:09d}.safetensors"


def save_snapshot(folder: Path, step: int, powers: Mapping[str, AveragedModel]) -> None:
    """Write the power averages after a step to `folder`, by their relative lengths, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{s}/{k}": v for s, p in powers.items() for k, v in _weights(p.module).items()}
    temporary = folder / f".{snapshot_file(step)}.tmp"
    write_tensors(temporary, tensors)
    temporary.replace(folder / snapshot_file(step))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}


def load(path: Path, *, weights: Weights = "ema", device: str = "cpu") -> Model:
    """Read a model directory in evaluation mode; `weights` are the averaged or the raw ones.

    A number is the relative length of a power average, which is made of the model's snapshots.
    Raises ReflowError if the model is missing, damaged, of another convention or objective, or has
    no such weights.
    """
    name = "model.safetensors" if weights == "ema" else "raw.safetensors"
    try:
        config = read_config(path)
        place = f"{path}: not a model that can be read: config.json: network"
        settings: Network = read(Network, config["network"], place)
        network = build(settings, tuple(config["shape"]), seed=0)
        whole: nn.Module = network
        if config.get("conditions") and conditions.FILE in config.get(FILES, {}):
            take(network, conditions.read(path, config["conditions"]))
        if isinstance(network, ImageNetwork) and network.of_diffusers and weights == "ema":
            name, whole = f"{DIFFUSERS}/diffusion_pytorch_model.safetensors", network.net
        if isinstance(weights, float):
            name = POWER
            tensors, content = _power_average(path, config, weights)
        else:
            content = read_checked(path, name, config)
            tensors = tensors_in(content)
        whole.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise ReflowError(
            f"{path}: expected a model (config.json and {name}), {error.filename} is missing;"
            " run the stage that trains it"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(
            f"{path / name}: not a model of this version ({reason}); train it again"
        ) from error
    rest = {key: value for key, value in config.items() if key != FILES}
    digest = hashlib.sha256(_text(rest).encode() + content).hexdigest()
    network.eval().requires_grad_(False)
    return Model(network.to(device), rest, digest)


def condition(
    model: Model, data: Mapping[str, Any] | None, table: conditions.Table | None, place: str
) -> None:
    """Give a model the table of conditions of the data at `place`, if it takes conditions.

    `data` is what the data says of its table. Raises ReflowError if it is not that of the model.
    """
    own = model.config.get("conditions")
    if getattr(model.network, "given", None) is not None and own != data:
        raise ReflowError(
            f"{place}: its conditions are others than those that the model was made with (another"
            " text encoder, other texts or none); initialise and train on this data"
        )
    take(model.network, table)


def redrawn(path: Path, out: Path, *, seed: int) -> Path:
    """Write the untrained model `path` to `out` with weights drawn from `seed`; return `out`."""
    model = load(path)
    network = build(model.network.settings, model.shape, seed=seed)
    take(network, table_of(model.network))
    save(out, network, about={**model.config, "seed": seed})
    return out


def _power_average(
    path: Path, config: dict[str, Any], sigma_rel: float
) -> tuple[dict[str, Tensor], bytes]:
    """Return the power average of a model by its relative length, and bytes that identify it."""
    kept = config.get("power_ema")
    if not kept:
        raise ReflowError(
            f"{path}: weights {sigma_rel:g} is a power average, and this model kept none; set"
            " train.power_ema of its round, or take ema or raw"
        )
    total: dict[str, Tensor] = {}
    found = hashlib.sha256(f"{sigma_rel:g}".encode())
    rows = factors(kept["steps"], kept["sigma_rel"], sigma_rel)
    for step, row in zip(kept["steps"], rows, strict=True):
        content = read_checked(path, f"{POWER}/{snapshot_file(step)}", config)
        found.update(content)
        tensors = tensors_in(content)
        for sigma, factor in zip(kept["sigma_rel"], row.tolist(), strict=True):
            for key, value in tensors.items():
                if (name := key.removeprefix(f"{sigma:g}/")) == key:
                    continue
                whole = not value.is_floating_point()  # a buffer that counts: that of the end
                part = value if whole else factor * value.double()
                total[name] = part if whole or name not in total else total[name] + part
    weights = {k: v.float() if v.is_floating_point() else v for k, v in total.items()}
    return weights, found.digest()


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of the model in the folder `path`, with the hashes of its files.

    Raises ReflowError if it is damaged, or the model is of another convention or objective, and
    FileNotFoundError if it is missing.
    """
    file = path / CONFIG
    config = read_json(file)
    if config.get("convention") != CONVENTION:
        raise ReflowError(
            f"{file}: convention {config.get('convention')!r}, this program has {CONVENTION!r};"
            " turn the model's time and sign (docs/library.md), or train it again"
        )
    objective = config.get("objective", "velocity")
    if objective not in get_args(Objective):
        raise ReflowError(
            f"{file}: objective {objective!r}, expected one of {', '.join(get_args(Objective))};"
            " train it again, or use the version that wrote it"
        )
    return config
