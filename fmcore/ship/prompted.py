"""A student of a text-to-image network in its teacher's own pipeline of diffusers.

Where each sample has a text, encoders and tokenizers are those of the folder that embedded the
data, copied and compared by their digest. Where all samples share one condition, the pipeline comes
without encoders, and the condition as a file of its embeddings.
"""

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fmcore.codec.kinds import PART, DiffusersCodec
from fmcore.conditions.encoders import EncoderPipeline, table_of
from fmcore.network.outside import OutsideNetwork
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.ship.form import Case, Form, compare, said
from fmcore.ship.images import GUIDANCE, GUIDED, net_of
from fmcore.work.of_diffusers import config_in, diffusers

FLUX = "FluxPipeline"
SHIFTED = ("StableDiffusion3Pipeline", FLUX)
"""Pipelines that shift latents before they decode them, as their VAE's config says."""
CONDITION = "condition.safetensors"
"""The file of a folder that has the embeddings of the one condition of all samples."""
HALF = 5e-3
"""Largest difference of samples of a prompt, relative to their RMS: the table that a round learns
from is in half precision, an encoder is not."""
TEXTS = ("a red cat", "a car")
"""Texts of the comparison where the model's folder has no table of its own."""


def check_digest(encoder: EncoderPipeline, wanted: str) -> None:
    """Raise ReflowError if a pipeline's encoders are others than those of a digest."""
    if (found := encoder.digest()) != wanted:
        raise ReflowError(
            f"{encoder.path}: its text encoders are others than those that the round learned from"
            f" (sha256 {found[:12]}, expected {wanted[:12]}); put those back"
        )


@dataclass(frozen=True)
class Prompted(Form):
    """A pipeline `name` with the encoders of `encoder`, or with none and one condition."""

    name: str
    encoder: EncoderPipeline | None

    @property
    def net(self) -> Any:
        """The network as it is called for images, with its conditions."""
        return cast(OutsideNetwork, self.model.network).net

    @property
    def part(self) -> str:
        """The name of the network in the pipeline."""
        return "unet" if type(net_of(self.model)).__name__.startswith("UNet") else "transformer"

    def write(self, out: Path) -> None:
        """Write network, scheduler, VAE, and encoders or the one condition, and the index."""
        codec = self.model.units.codec
        vae = codec.module if isinstance(codec, DiffusersCodec) else None
        parts = {self.part: net_of(self.model), "scheduler": self.schedule.scheduler}
        parts |= {} if vae is None else {PART: vae}
        if self.encoder is None:
            kind = getattr(diffusers(), self.name)
            takes = inspect.signature(kind.__init__).parameters
            more = {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
            kind(**{**dict.fromkeys(_needs(kind)), **more, **parts}).save_pretrained(out)
            one = {name: x.contiguous() for name, x in self._given(None, 1).items()}
            save_file(one, out / CONDITION)
            return
        root = Path(self.encoder.path)
        index = {k: v for k, v in config_in(root / "model_index.json").items() if k[:5] != "_name"}
        for name, entry in index.items():
            if isinstance(entry, list) and entry != [None, None] and name not in parts:
                _copy(root, out, name)
        for name, module in parts.items():
            module.save_pretrained(out / name)
            index[name] = ["diffusers", type(module).__name__]
        (out / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        record = self.model.config["conditions"]["encoder"]
        check_digest(self.encoder.model_copy(update={"path": str(out)}), record["sha256"])

    def load(self, out: Path) -> dict[str, Any]:
        """Return the parts that are not there, which diffusers wants to be told."""
        kind = getattr(diffusers(), self.name)
        if self.encoder is None:
            there = {self.part, "scheduler", *([PART] if self._vae() else [])}
            return {name: None for name in _needs(kind) if name not in there}
        index = config_in(Path(self.encoder.path) / "model_index.json").items()
        absent = [name for name, of in index if of == [None, None]]
        return {name: None for name in absent if name not in kind._optional_components}

    @property
    def guides(self) -> bool:
        """Whether the pipeline may guide: each sample has a text, and Flux has no guidance."""
        return self.encoder is not None and self.name != FLUX and super().guides

    def _given(self, label: Tensor | None, rows: int, *, negative: bool = False) -> dict[str, Any]:
        """Return embeddings [rows, ...] by the names of the pipeline's arguments."""
        like = torch.zeros(rows)
        if self.net.given is not None:
            tokens, mask, pooled = self.net.given.sequence(label, like)
        else:
            known = {n: getattr(self.net, f"condition_{n}") for n in self.net.settings.condition}
            known = {n: x.expand(rows, *x.shape) for n, x in known.items()}
            tokens = known["encoder_hidden_states"]
            mask = known.get("encoder_attention_mask", torch.ones(tokens.shape[:2]))
            pooled = known.get("text_embeds", known.get("pooled_projections"))
        found = {"prompt_embeds": tokens}
        if self.name.startswith("PixArt"):
            found["prompt_attention_mask"] = mask
        elif self.name != "StableDiffusionPipeline":
            found["pooled_prompt_embeds"] = pooled
        return {f"negative_{n}": x for n, x in found.items()} if negative else found

    def arguments(self, factor: int) -> dict[str, Any]:
        """Return sizes of the picture, `factor` times those of a latent, steps, and guidance."""
        height, width = (side * factor for side in self.model.shape[1:])
        found = {"height": height, "width": width, **self.schedule.call, "guidance_scale": 1.0}
        fixed = {n: getattr(self.net, f"condition_{n}") for n in self.net.settings.condition}
        if "guidance" in fixed:  # Flux takes it as a number that the network embeds
            found["guidance_scale"] = float(fixed["guidance"])
        ids = fixed["time_ids"].int().tolist() if "time_ids" in fixed else []
        if ids and ids != [height, width, 0, 0, height, width]:
            names = ("original_size", "crops_coords_top_left", "target_size")
            found |= {n: tuple(ids[i : i + 2]) for n, i in zip(names, (0, 2, 4), strict=True)}
        if self.name.startswith("PixArt"):
            found |= {"use_resolution_binning": False}
            found |= {"clean_caption": False} if self.encoder else {"negative_prompt": None}
        if self.encoder is not None and self.encoder.length is not None:
            found["max_sequence_length"] = self.encoder.length
        return found

    def drawn(self, pipe: Any, case: Case) -> Tensor:
        """Return latents [N, *D] of embeddings."""
        rows = len(case.noise)
        given = self._given(case.label, rows)
        if case.guidance != 1:
            given |= self._given(None, rows, negative=True)
        if self.name.startswith("PixArt"):
            given["negative_prompt"] = None
        return self.latents(pipe, case, given)

    def latents(self, pipe: Any, case: Case, given: dict[str, Any]) -> Tensor:
        """Return latents [N, *D] of prompts or embeddings, from the noise of a case."""
        flux, x = self.name == FLUX, case.noise
        arguments = {**self.arguments(pipe.vae_scale_factor), **given}
        if case.guidance != 1:
            arguments["guidance_scale"] = case.guidance
        if flux:  # squares of 2 x 2 are its tokens
            h, w = x.shape[2] // 2, x.shape[3] // 2
            x = nn.functional.pixel_unshuffle(x, 2).flatten(2).mT
        found: Tensor = pipe(latents=x, output_type="latent", **arguments).images
        return nn.functional.pixel_shuffle(found.mT.unflatten(2, (h, w)), 2) if flux else found

    def seen(self, x: Tensor) -> Tensor:
        """Return latents as they are."""
        return x

    def call(self, folder: str) -> list[str]:
        """Return a call for a text, or for 16 images of the one condition."""
        first, config = list[str](), self._vae()
        factor = 2 ** (len(config["block_out_channels"]) - 1) if config else 8
        given = self.arguments(factor) | ({} if config else {"output_type": "latent"})
        if self.encoder is None:
            first = [
                "from safetensors.torch import load_file",
                f'condition = load_file("{folder}/{CONDITION}")',
            ]
            words = f"**condition, {said(num_images_per_prompt=16, **given)}"
        else:
            words = said(prompt=self._texts()[0], **given)
        return [*first, f"images = pipe({words}).images"]

    def _vae(self) -> dict[str, Any]:
        """Return the config of the VAE that is written; empty for none."""
        codec = self.model.units.codec
        if isinstance(codec, DiffusersCodec):
            return dict(codec.module.config)
        if self.encoder is None:
            return {}
        file = Path(self.encoder.path) / PART / "config.json"
        return config_in(file) if file.is_file() else {}

    def _texts(self) -> tuple[str, ...]:
        table = None if self.net.given is None else self.net.given.table
        return TEXTS if table is None else table.texts

    def notes(self) -> list[str]:
        """Say what guidance is, and how far a prompt's samples are from the round's own."""
        lines = []
        if self.guides:
            lines.append(GUIDANCE)
        elif (guided := self.model.config.get("guided", 1.0)) != 1:
            lines.append(GUIDED.format(guided, "guidance_scale=1.0"))
        elif self.name == FLUX:
            lines.append("Guidance of this package is none of Flux' pipeline; leave it as it is.")
        else:
            lines.append("Call it with `guidance_scale=1.0`: its one condition has none to guide.")
        if self.encoder is not None:
            lines.append(
                "The round learned from embeddings in half precision; the pipeline embeds a prompt"
                " in full, which moves its samples by some thousandths."
            )
        return lines

    @property
    def flow(self) -> Flow:
        """The flow, of as many texts as there are at hand."""
        own = super().flow
        return own if own.table is None else replace(own, classes=len(own.table))

    def checked(self, out: Path) -> Form:
        """Return the form if the folder gives the round's samples, of embeddings and of prompts."""
        if self.encoder is None:
            return super().checked(out)
        with self._with_texts(self.encoder.model_copy(update={"path": str(out)})):
            return super().checked(out)

    @contextmanager
    def _with_texts(self, encoder: EncoderPipeline) -> Iterator[None]:
        """Let a network without its table, which was too large for its folder, have some texts."""
        given = self.net.given
        lent = given.table is None
        if lent:
            given.take(table_of(TEXTS, encoder))
        try:
            yield
        finally:
            if lent:
                given.forget()

    def compare(self, pipe: Any, case: Case, found: Tensor) -> None:
        """Raise ReflowError unless embeddings and prompts give the samples of the round."""
        super().compare(pipe, case, found)
        if self.encoder is not None and case.label is not None:
            texts = self._texts()
            prompts = {"prompt": [texts[i] for i in case.label.tolist()]}
            compare(found, self.latents(pipe, case, prompts), "of prompts", HALF)


def _needs(kind: Any) -> list[str]:
    """Return the parts that a pipeline has to be given, if only as None."""
    takes = inspect.signature(kind.__init__).parameters.items()
    return [name for name, p in takes if name != "self" and p.default is p.empty]


def _copy(root: Path, out: Path, name: str) -> None:
    """Copy a part of a pipeline's folder."""
    if Path(name).name != name or not (root / name).is_dir():
        raise ReflowError(
            f"{root}: its index names a part {name}, which is no folder there; save the pipeline"
            " again, or ship the round with --export"
        )
    shutil.copytree(root / name, out / name)
