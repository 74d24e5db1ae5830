"""Networks of diffusers by the name of their class and its config, called as images and times."""

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcore.conditions.table import ConditionInput, Table
from fmcore.network.given import Given
from fmcore.settings import ClassCount, ReflowError, Settings
from fmcore.work.of_diffusers import diffusers

Name = Literal[
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
]
ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
"""Conditions that a network of diffusers takes in one argument, `added_cond_kwargs`."""
Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=10**6)], ...], Field(strict=False, max_length=4)
]


class DiffusersClass(Settings):
    """A class of diffusers with its config: images [B, C, H, W] and times [B] in, images out.

    `condition` has the shapes of the inputs that are the same for every sample, such as the
    embedding of one prompt; their values are buffers.
    """

    name: Literal["diffusers"]
    """A network of diffusers, made from its class and its config."""
    kind: Name
    """The class of diffusers."""
    config: dict[str, Any]
    """The config with which diffusers makes the class, as in its config.json."""
    condition: dict[str, Sizes] = Field(default_factory=dict, max_length=16)
    """Shapes of the inputs that all samples share, by the name of diffusers' argument."""
    classes: ClassCount = 0
    """Number of classes of the label; 0 for a network without labels."""
    null: bool = False
    """Whether the network has one more class, for no label: guidance and label_dropout need it."""
    conditions: ConditionInput | None = Field(default=None, exclude_if=lambda given: given is None)
    """Sizes of the conditions of the data, whose tokens the network attends to; null for none."""

    @model_validator(mode="after")
    def _has_its_classes(self) -> "DiffusersClass":
        if self.conditions is not None:
            return self  # the label is the row of a condition
        table = embedded_classes(self.kind, self.config)
        if self.classes + self.null > table:
            raise ValueError(
                f"classes: {self.classes}{' and a null class' if self.null else ''}, and the"
                f" network embeds {table} labels"
            )
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ReflowError if the network does not take samples of `shape`."""
        wanted, size = int(self.config["in_channels"]), self.config.get("sample_size")
        channels = wanted // 4 if self.kind == "FluxTransformer2DModel" else wanted
        fixed = self.kind in ("DiTTransformer2DModel", "PixArtTransformer2DModel")
        sides = [size, size] if fixed else list(shape[1:])
        if len(shape) != 3 or list(shape) != [channels, *sides]:
            takes = f"[{channels}, {size}, {size}]" if fixed else f"[{channels}, H, W]"
            raise ReflowError(
                f"{self.kind}: its samples are {takes}, those of the data {list(shape)}; use data"
                " of that shape, such as the latents that the model was trained on"
            )

    def build(self, shape: tuple[int, ...]) -> "DiffusersNetwork":
        """Make the network for images of `shape`."""
        return DiffusersNetwork(self, shape)

    def sized(self, table: Table | None) -> "DiffusersClass":
        """Return the settings for the conditions of the data, each a sequence of tokens.

        Raises ReflowError if the data has none, or others than the network attends to.
        """
        if table is None:
            raise ReflowError(
                "model.conditions: the data has no conditions; set data.conditions, or remove it"
            )
        wanted, sizes = absent_condition(self.kind, self.config), table.sizes
        tokens, pooled = wanted.get("encoder_hidden_states"), wanted.get("pooled_projections")
        if tokens is None:
            raise ReflowError(f"model.conditions: {self.kind} attends to no tokens; remove it")
        if not sizes.length or sizes.features != tokens[1]:
            got = f"{sizes.length} tokens of {sizes.features}" if sizes.length else "vectors"
            raise ReflowError(
                f"model.conditions: {self.kind} attends to tokens of {tokens[1]} numbers, the"
                f" data's conditions are {got}; embed its texts with the text encoder of the model"
            )
        width = pooled[0] if pooled else summed(self.config)
        if width and sizes.pooled != width:
            raise ReflowError(
                f"model.conditions: {self.kind} takes {width} numbers that sum up a text, the"
                f" data's conditions have {sizes.pooled}; embed its texts with the model's encoders"
            )
        return self.model_copy(update={"conditions": sizes, "classes": len(table), "null": True})


def summed(config: dict[str, Any]) -> int:
    """Return how many numbers that sum up a text a U-Net takes (SDXL's text_embeds); 0 for none."""
    if config.get("addition_embed_type") != "text_time":
        return 0
    times = 6 * int(config["addition_time_embed_dim"])  # time_ids are six numbers
    return int(config["projection_class_embeddings_input_dim"]) - times


def takes_sizes(kind: str, config: dict[str, Any]) -> bool:
    """Return whether a network takes the size of its pictures: PixArt-alpha of 1,024 pixels does.

    Where its config does not say, diffusers takes it from the side of the latents, which is 128.
    """
    said = config.get("use_additional_conditions")
    if kind != "PixArtTransformer2DModel":
        return False
    return bool(config.get("sample_size") == 128 if said is None else said)


def embedded_classes(kind: str, config: dict[str, Any]) -> int:
    """Return how many labels a network of diffusers embeds, its null class included."""
    if kind == "DiTTransformer2DModel":
        return int(config.get("num_embeds_ada_norm") or 0) + 1
    return int(config.get("num_class_embeds") or 0) if kind.startswith("UNet2D") else 0


def absent_condition(kind: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the conditions that a class needs: one token where it takes several."""
    width = {
        "UNet2DConditionModel": config.get("cross_attention_dim"),
        "PixArtTransformer2DModel": config.get("caption_channels"),
        "SD3Transformer2DModel": config.get("joint_attention_dim"),
        "FluxTransformer2DModel": config.get("joint_attention_dim"),
    }.get(kind)
    if width is None:
        return {}
    found: dict[str, tuple[int, ...]] = {"encoder_hidden_states": (1, int(width))}
    if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        found["pooled_projections"] = (int(config["pooled_projection_dim"]),)
    if config.get("guidance_embeds"):
        found["guidance"] = ()
    return found


class DiffusersNetwork(nn.Module):
    """A network of diffusers: x [B, C, H, W], its own time [B], label [B] or None -> [B, C, H, W].

    A variance that it predicts beside (twice the channels) is left out.
    """

    def __init__(self, settings: DiffusersClass, shape: tuple[int, ...]) -> None:
        super().__init__()
        settings.check_shape(shape)
        self.settings, self.shape = settings, shape
        try:
            made = getattr(diffusers(), settings.kind).from_config(settings.config)
        except (TypeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ReflowError(f"{settings.kind}: its config is not right ({reason})") from None
        self.net: Any = made.train()
        for module in made.modules():
            if hasattr(module, "dropout_prob"):
                # diffusers would drop labels with the global generator; training uses (seed, step).
                module.dropout_prob = 0.0
        self.given = Given(settings.conditions) if settings.conditions else None
        for name, sizes in settings.condition.items():
            self.register_buffer(f"condition_{name}", torch.zeros(sizes))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the output at x [B, C, H, W] and the network's own time t [B]."""
        given = {
            name: cast(Tensor, getattr(self, f"condition_{name}")).expand(x.shape[0], *sizes)
            for name, sizes in self.settings.condition.items()
        }
        if self.given is not None:
            given |= self._texts(self.given, label, t)
        added = {name: given.pop(name) for name in ADDED if name in given}
        kind = self.settings.kind
        if added or kind == "PixArtTransformer2DModel":
            either = {"resolution": None, "aspect_ratio": None}
            given |= {"added_cond_kwargs": added or either}  # type: ignore[dict-item]
        if self.settings.classes and self.given is None:
            given["class_labels"] = self._labels(label, t)
        out = self._flux(x, t, given) if kind == "FluxTransformer2DModel" else None
        if out is None:
            out = self.net(x, timestep=t, return_dict=False, **given)[0]
        return out[:, : self.shape[0]]

    def _texts(self, table: Given, label: Tensor | None, t: Tensor) -> dict[str, Tensor]:
        """Return what the network takes of the conditions, as its pipeline in diffusers does.

        Of the classes here PixArt's alone is told which tokens are padding.
        """
        tokens, mask, pooled = table.sequence(label, t)
        kind = self.settings.kind
        if kind == "PixArtTransformer2DModel":
            return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
        if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
            return {"encoder_hidden_states": tokens, "pooled_projections": pooled}
        sums = {"text_embeds": pooled} if summed(self.settings.config) else {}
        return {"encoder_hidden_states": tokens, **sums}

    def _labels(self, label: Tensor | None, t: Tensor) -> Tensor:
        if label is None and not self.settings.null:
            raise ReflowError(
                f"{self.settings.kind}: it has no class for no label, so every sample needs a label"
            )
        null = torch.full_like(t, self.settings.classes, dtype=torch.int64)
        return null if label is None else label

    def _flux(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Call Flux on squares of 2 x 2 as tokens, as its pipeline in diffusers does."""
        h, w = x.shape[2] // 2, x.shape[3] // 2
        tokens = nn.functional.pixel_unshuffle(x, 2).flatten(2).mT
        rows, columns = torch.meshgrid(
            torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        words = given["encoder_hidden_states"].shape[1]
        out = self.net(
            tokens,
            timestep=t / 1000,
            img_ids=places.to(x.dtype),
            txt_ids=x.new_zeros(words, 3),
            return_dict=False,
            **given,
        )[0]
        return nn.functional.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)
