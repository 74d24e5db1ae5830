"""Models on disk.

A model is a directory: `config.json`, `model.safetensors` (EMA weights) and `raw.safetensors` (the
optimiser's own weights). A network of diffusers keeps its EMA weights in `diffusers/` instead, as
`from_pretrained` of diffusers reads them, and those of its input for spans in `span.safetensors`;
`power/` has snapshots of power averages, if the training kept any, and `adapter/` the adapter of a
round that trained one. Nothing is ever unpickled. config.json has the sha256 of each of these files
and its own, so that a model with a flipped bit is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, cast, get_args

from pydantic import Discriminator, Tag, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fmcore.checked import FILES, hashes, read_checked, read_json, sealed
from fmcore.codec.latents import Units
from fmcore.conditions import table as conditions
from fmcore.matching.interpolant import Objective
from fmcore.network.build import AnyNetwork, VelocityNetwork, build, table_of, take
from fmcore.network.images import DIFFUSERS, ImageNetwork
from fmcore.network.power import SigmaRel
from fmcore.network.snapshots import POWER, power_average, weights_in, write_tensors
from fmcore.own import read
from fmcore.scale import Scale
from fmcore.settings import CONVENTION, ReflowError

CONFIG = "config.json"
"""The file of a model's folder that describes it."""
SPAN = "span.safetensors"
"""The file of a model's folder that has the input for spans of a network of diffusers."""


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

    @cached_property
    def units(self) -> Units:
        """The way from the units in which the model samples to the data's own; decodes latents."""
        return Units.of(self.scale, self.config.get("codec"))

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
    if _of_diffusers(inner):
        inner.save_weights(path)
        if inner.settings.spans:
            write_tensors(path / SPAN, weights_in(inner.span))
    else:
        write_tensors(path / "model.safetensors", weights_in(inner))
    write_tensors(path / "raw.safetensors", weights_in(raw or inner))
    for file in snapshots:
        (path / POWER).mkdir(exist_ok=True)
        shutil.copyfile(file, path / POWER / file.name)
    table = table_of(inner)
    if table is not None and len(table.content) <= conditions.KEPT:
        conditions.write(path, table)
    config[FILES] = hashes(path, besides=CONFIG)
    (path / CONFIG).write_text(_text(sealed(config)))


def _of_diffusers(network: nn.Module) -> TypeGuard[ImageNetwork]:
    return isinstance(network, ImageNetwork) and network.of_diffusers


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


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
        settings: AnyNetwork = read(AnyNetwork, config["network"], place)
        network = build(settings, tuple(config["shape"]), seed=0)
        whole: nn.Module = network
        if config.get("conditions") and conditions.FILE in config.get(FILES, {}):
            take(network, conditions.read(path, config["conditions"]))
        parts = network if weights == "ema" and _of_diffusers(network) else None
        if parts:
            name, whole = f"{DIFFUSERS}/diffusion_pytorch_model.safetensors", parts.net
        if isinstance(weights, float):
            name = POWER
            tensors, content = power_average(path, config, weights)
        else:
            content = read_checked(path, name, config)
            tensors = tensors_in(content)
        whole.load_state_dict(tensors)
        if parts and parts.settings.spans:
            beside = read_checked(path, SPAN, config)
            parts.span.load_state_dict(tensors_in(beside))
            content += beside
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
    fresh = build(model.network.settings, model.shape, seed=seed)
    network = take(fresh, table_of(model.network))
    save(out, network, about={**model.config, "seed": seed})
    return out


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
