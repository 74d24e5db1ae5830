"""Forms of rounds without texts: diffusers' own pipelines, and the one that lies beside this file.

An unconditional U-Net in [-1, 1] is a DDPMPipeline, or DDIMPipeline where it predicts epsilon; a
DiT of numbered time steps, with a VAE, is a DiTPipeline. They take no grid in a call, and have
no place for other units; what they cannot say comes with `pipeline.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.codec.kinds import DiffusersCodec
from fmcore.network.images import ImageNetwork, UNet
from fmcore.network.outside import OutsideNetwork
from fmcore.network.predictions import Discrete, FlowMatching
from fmcore.network.store import Model
from fmcore.scale import Scale
from fmcore.ship import schedule
from fmcore.ship.form import Case, Form, has_null, said
from fmcore.solve.solver import Solver
from fmcore.work.of_diffusers import diffusers

PIPELINE = Path(__file__).with_name("pipeline.py")
"""The pipeline that a folder of another network comes with; it needs diffusers alone."""
IMAGENET = 1000
"""The class that DiTPipeline takes for no label, whatever the network has."""


def image_form(model: Model, solver: Solver) -> Form:
    """Return the form of a round of images or latents that takes no texts."""
    prediction = _prediction(model)
    if not isinstance(prediction, Discrete):
        steps = prediction.steps if isinstance(prediction, FlowMatching) else schedule.THOUSAND
        own = schedule.of_flow(solver, steps)
        plain = own.given is None and is_plain(model)
        return Images(model, solver, own) if plain else Own(model, solver, _by_times(own, solver))
    theirs = schedule.ddim(solver, prediction)
    if theirs is not None and is_plain(model):
        return Images(model, solver, theirs)
    if theirs is not None and _of_dit_pipeline(model):
        return ClassImages(model, solver, theirs)
    return Own(model, solver, schedule.of_sigmas(solver, prediction))


def _prediction(model: Model) -> Any:
    network = model.network
    return network.settings.prediction if isinstance(network, OutsideNetwork) else None


def _by_times(own: schedule.Schedule, solver: Solver) -> schedule.Schedule:
    """Return the schedule of a grid whose times a pipeline gives to the scheduler itself."""
    steps = own.scheduler.config.num_train_timesteps
    plain = diffusers().FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    return schedule.Schedule(plain, own.steps, tuple(solver.grid(1.0, 0.0)[:-1].tolist()))


def net_of(model: Model) -> Any:
    """Return the network of diffusers in a model."""
    network: Any = model.network
    return network.net.net if isinstance(network, OutsideNetwork) else network.net


def is_plain(model: Model) -> bool:
    """Whether pipelines without labels sample it: a U-Net without patches, codec and other units.

    They clamp to [-1, 1], so the samples have to be images.
    """
    settings, about, net = model.network.settings, model.config, net_of(model)
    if type(net).__name__ != "UNet2DModel" or settings.classes or _patch(model) > 1:
        return False
    image = bool(about.get("image", model.shape[0] in (1, 3)))  # earlier versions did not say
    size, (channels, *sides) = net.config.sample_size, model.shape
    fits = net.config.out_channels == channels and sides == _sides(size)
    return image and fits and not about.get("codec") and model.scale.identity


def _sides(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size or ())


def _patch(model: Model) -> int:
    settings = model.network.settings
    return settings.patch if isinstance(settings, UNet) else 1


def _of_dit_pipeline(model: Model) -> bool:
    """Whether DiTPipeline samples it: with labels, and images from its VAE's own latents."""
    codec, about = model.units.codec, model.config
    if (
        type(net_of(model)).__name__ != "DiTTransformer2DModel"
        or not model.network.settings.classes
    ):
        return False
    if not isinstance(codec, DiffusersCodec) or not about["codec"]["image"]:
        return False
    return same_scale(model.scale, codec.scale) and not codec.module.config.get("shift_factor")


def same_scale(own: Scale, other: Scale) -> bool:
    """Whether two scales, each of all channels or one for all, give the same units."""
    pairs = (own.mean, other.mean), (own.std, other.std)
    apart = [float((torch.tensor(a) - torch.tensor(b)).abs().max()) for a, b in pairs]
    return max(apart) < 1e-5 * min(other.std)


class Images(Form):
    """A DDPMPipeline on straight paths, or a DDIMPipeline."""

    def write(self, out: Path) -> None:
        """Write the network, the scheduler and the index."""
        ddim = isinstance(_prediction(self.model), Discrete)
        kind = diffusers().DDIMPipeline if ddim else diffusers().DDPMPipeline
        kind(net_of(self.model), self.schedule.scheduler).save_pretrained(out)

    def drawn(self, pipe: Any, case: Case) -> Tensor:
        """Return images [N, C, H, W] in [-1, 1]."""
        images: Tensor = pipe(
            batch_size=len(case.noise), generator=case.generator, output_type="pt",
            **self.schedule.call,
        ).images  # fmt: skip
        return 2 * images - 1

    def seen(self, x: Tensor) -> Tensor:
        """Return samples as they are, clamped."""
        return x.clamp(-1, 1)

    def call(self, folder: str) -> list[str]:
        """Return a call for 16 images."""
        return [f"images = pipe({said(batch_size=16, **self.schedule.call)}).images"]


class ClassImages(Form):
    """A DiTPipeline: labels, guidance, and a VAE."""

    def write(self, out: Path) -> None:
        """Write the network, the scheduler, the VAE and the index."""
        codec: Any = self.model.units.codec
        names = self.model.config.get("classes") or []
        diffusers().DiTPipeline(
            net_of(self.model), codec.module, self.schedule.scheduler,
            id2label={str(i): name for i, name in enumerate(names)} or None,
        ).save_pretrained(out)  # fmt: skip

    @property
    def guides(self) -> bool:
        """Whether its class for no label is the one that the pipeline takes."""
        return super().guides and self.model.network.settings.classes == IMAGENET

    def drawn(self, pipe: Any, case: Case) -> Tensor:
        """Return images [N, C, H, W] in [-1, 1]."""
        assert case.label is not None
        images: Tensor = pipe(
            case.label.tolist(), guidance_scale=case.guidance, generator=case.generator,
            output_type="pt", **self.schedule.call,
        ).images  # fmt: skip
        return 2 * images - 1

    def seen(self, x: Tensor) -> Tensor:
        """Return decoded images, clamped."""
        return self.model.units.inverse(x).clamp(-1, 1)

    def call(self, folder: str) -> list[str]:
        """Return a call for images of two labels."""
        given = {"class_labels": [0, 1], **self.schedule.call, "guidance_scale": 1.0}
        return [f"images = pipe({said(**given)}).images"]

    def notes(self) -> list[str]:
        """Say what guidance is."""
        if self.guides:
            return [GUIDANCE]
        if (count := self.model.network.settings.classes) != IMAGENET:
            return [
                f"Call it with `guidance_scale=1.0`: DiTPipeline takes class {IMAGENET} for no"
                f" label, and this network has {count} classes."
            ]
        return [GUIDED.format(self.model.config["guided"], "guidance_scale=1.0")]


GUIDANCE = (
    "Guidance g of this package, v_null + g (v - v_null), is `guidance_scale=g` where g is above 1;"
    " `guidance_scale=1.0` is none, and the numbers below are of none."
)
GUIDED = (
    "The pairs that it learned have guidance {:g} in them: call it with `{}`, or it is"
    " applied twice."
)


class Own(Form):
    """The pipeline beside this file: any grid, labels, patches, units, with a VAE or without."""

    own_code = True

    def write(self, out: Path) -> None:
        """Write network, scheduler, VAE, index and the pipeline's code."""
        from fmcore.ship import pipeline

        own: Any = pipeline
        model, codec = self.model, self.model.units.codec
        assert isinstance(model.network, ImageNetwork | OutsideNetwork)
        made = own.RectifiedFlowPipeline(
            net_of(model),
            self.schedule.scheduler,
            shape=list(model.shape),
            times=list(self.schedule.given or ()),
            patch=_patch(model),
            classes=model.network.settings.classes,
            mean=list(model.scale.mean),
            std=list(model.scale.std),
            vae=codec.module if isinstance(codec, DiffusersCodec) else None,
        )
        made.save_pretrained(out)
        shutil.copyfile(PIPELINE, out / "pipeline.py")
        index = out / "model_index.json"
        told = json.loads(index.read_text())
        told["_class_name"] = ["pipeline", "RectifiedFlowPipeline"]
        index.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")

    def drawn(self, pipe: Any, case: Case) -> Tensor:
        """Return samples [N, *D] in the data's own units."""
        images: Tensor = pipe(noise=case.noise, label=case.label, guidance=case.guidance).images
        return images

    def seen(self, x: Tensor) -> Tensor:
        """Return samples in the data's own units; a VAE's are clamped."""
        own = self.model.units.inverse(x)
        return own if self.model.units.codec is None else own.clamp(-1, 1)

    def call(self, folder: str) -> list[str]:
        """Return a call for 16 images; of one label where there is no class for none."""
        needs = self.model.network.settings.classes and not has_null(self.model)
        given = {"batch_size": 16, **({"label": 0} if needs else {})}
        return [f"images = pipe({said(**given)}).images"]

    def notes(self) -> list[str]:
        """Say what guidance is, where there are labels."""
        if (guided := self.model.config.get("guided", 1.0)) != 1:
            return [GUIDED.format(guided, "guidance=1.0")]
        if not self.guides:
            return []
        return ["`guidance=g` is that of this package, v_null + g (v - v_null); 1 is none."]
