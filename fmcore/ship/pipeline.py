"""Samples of a rectified flow by diffusers alone; this file lies beside the weights that it uses.

pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
images = pipe(batch_size=16).images
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput


class RectifiedFlowPipeline(DiffusionPipeline):
    """Noise at t = 1 to images at t = 0 by the scheduler's steps: x <- x - h v(x, t).

    `times` are the sigmas that the scheduler is given: of straight paths the times at which a step
    begins, falling from 1. The last step ends at 0. `patch` x `patch` pixels enter the network as
    channels; `classes` is the number of labels, and itself the null label; a sample in the data's
    own units is x * std + mean, for each channel. Of latents that is what the `vae` decodes.
    """

    _optional_components = ["vae"]  # noqa: RUF012  # as diffusers reads it

    def __init__(  # noqa: PLR0913  # what model_index.json keeps
        self, network: Any, scheduler: Any, shape: list[int] = [], times: list[float] = [1.0],  # noqa: B006
        patch: int = 1,
        classes: int = 0, mean: list[float] = [0.0], std: list[float] = [1.0],  # noqa: B006
        vae: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler, vae=vae)
        self.register_to_config(
            shape=shape, times=times, patch=patch, classes=classes, mean=mean, std=std
        )

    @torch.no_grad()
    def __call__(  # as the pipelines of diffusers
        self, batch_size: int = 1, label: Any = None, guidance: float = 1.0, *,
        noise: Any = None, generator: Any = None, output_type: str = "pt",
    ) -> Any:  # fmt: skip
        """Return images [B, C, H, W] in the data's own units, or "pil" for values in [-1, 1].

        `label` is a number or a tensor [B]; None is the null label.
        """
        c, network = self.config, self.network
        if noise is None:
            noise = torch.randn(batch_size, *c.shape, generator=generator).to(self.device)
        null = torch.full((len(noise),), c.classes, device=noise.device)
        label = null if label is None else torch.as_tensor(label, device=noise.device) + 0 * null

        def velocity(x: Any, t: Any, of: Any) -> Any:
            x = torch.nn.functional.pixel_unshuffle(x, c.patch) if c.patch > 1 else x
            has = c.classes or type(network).__name__ == "DiTTransformer2DModel"
            v = network(x, t.expand(len(x)), class_labels=of if has else None).sample
            v = v[:, : x.shape[1]]  # without a variance that is predicted beside
            return torch.nn.functional.pixel_shuffle(v, c.patch) if c.patch > 1 else v

        self.scheduler.set_timesteps(sigmas=c.times, device=noise.device)
        x = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        scaled = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
        for t in self.progress_bar(self.scheduler.timesteps):
            given = scaled(x, t)
            v = velocity(given, t, label)
            if guidance != 1:
                plain = velocity(given, t, null)
                v = plain + guidance * (v - plain)
            x = self.scheduler.step(v, t, x).prev_sample
        wide = (1, -1, 1, 1)
        x = x * torch.tensor(c.std, device=x.device).reshape(wide)
        x = x + torch.tensor(c.mean, device=x.device).reshape(wide)
        if self.vae is not None:
            x = self.vae.decode(x).sample.clamp(-1, 1)
        if output_type == "pil":
            whole = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
            x = self.numpy_to_pil(whole)
        return ImagePipelineOutput(images=x)
