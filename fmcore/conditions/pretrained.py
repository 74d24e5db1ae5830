"""Text encoders of others in folders: one of transformers, or all those of a pipeline of diffusers.

Weights are read from safetensors alone: nothing is unpickled, and nothing is downloaded.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from fmcore.checked import sha256
from fmcore.conditions.base import Embedded, TextEncoder
from fmcore.settings import ReflowError
from fmcore.work.of_diffusers import config_in, diffusers

AT_ONCE = 64
"""Texts that an encoder gets at once."""
LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
"""How weights are loaded: from a folder, from nowhere else, and never from a pickle."""
WRONG = (
    OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError,
    SafetensorError,
)  # fmt: skip
"""What transformers and diffusers raise for a folder that is not whole, or needs a package."""
PIPELINES: dict[str, tuple[int | None, int | None]] = {
    "StableDiffusionPipeline": (None, None),
    "StableDiffusionXLPipeline": (None, 2),
    "StableDiffusion3Pipeline": (None, 2),
    "FluxPipeline": (None, 1),
    "PixArtAlphaPipeline": (1, None),
    "PixArtSigmaPipeline": (1, None),
}
"""Where the mask and the pooled vector are in what `encode_prompt` of a pipeline returns, after the
tokens. Without a mask its network attends to padding too."""


class EncoderFolder(TextEncoder):
    """A text encoder of transformers from a folder, as `save_pretrained` writes it: CLIP, T5, BERT.

    Each text is a sequence of its last hidden states, computed in float32; `pooled` is the model's
    own where the folder has its weights, else the mean.
    """

    name: Literal["folder"]
    path: str
    """Folder with the encoder and its tokenizer, relative to the project. Nothing is downloaded,
    and none of its code is run."""
    length: int = Field(default=77, ge=1, le=4096)
    """Tokens of a sequence: longer texts are cut, shorter ones are padded. The table has this many
    vectors for each condition."""

    def digest(self) -> str:
        """Return the hash of all files of the folder."""
        return _sha256_of(_files(Path(self.path), "**/*"))

    def encode(self, texts: Sequence[str]) -> Embedded:
        """Return the last hidden states of each text, `length` of them."""
        model, split, pools = self._loaded()
        return _joined(self._of(model, split, pools, part) for part in _cut(texts))

    @torch.no_grad()
    def _of(
        self, model: Any, split: Any, pools: bool, texts: list[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = split(
            texts, padding="max_length", truncation=True, max_length=self.length,
            return_tensors="pt",
        )  # fmt: skip
        mask = given["attention_mask"]
        found = model(input_ids=given["input_ids"], attention_mask=mask)
        pooled = getattr(found, "pooler_output", None) if pools else None
        return _kept(found.last_hidden_state, mask, pooled)

    def _loaded(self) -> tuple[Any, Any, bool]:
        """Return the encoder, its tokenizer, and whether its pooler has weights.

        A folder of another task, as for masked words, has none; they would be random.
        """
        where = f"data.conditions.encoder.path: {self.path}"
        if not (Path(self.path) / "config.json").is_file():
            raise ReflowError(
                f"{where}: no config.json in it; give a folder that save_pretrained of transformers"
                " wrote"
            )
        of, code = _transformers(), {"trust_remote_code": False}
        try:
            split = of.AutoTokenizer.from_pretrained(self.path, local_files_only=True, **code)
            _check_tokens(split, Path(self.path))
            model, lacking = _made(of.AutoModel, self.path, **code)
            two = hasattr(model, "encoder") and hasattr(model, "decoder")
            whole = model.get_encoder() if two else model
            whole = getattr(whole, "text_model", whole)
            own = {id(weight) for weight in whole.parameters()}  # not those of a decoder
            named = model.named_parameters(remove_duplicate=False)
            lacking &= {name for name, weight in named if id(weight) in own}
            pooler = {name for name in lacking if "pooler" in name.split(".")}
            if rest := sorted(lacking - pooler):
                raise ValueError(f"it has no {rest[0]} of its config")
        except WRONG as error:
            raise ReflowError(
                f"{where}: no text encoder that can be read ({_said(error)})"
            ) from None
        return whole.eval(), split, not pooler


class EncoderPipeline(TextEncoder):
    """All text encoders of a pipeline of diffusers, joined as the pipeline joins them.

    Tokens and pooled vector are those of its own `encode_prompt`; without one, the tokens' mean.
    """

    name: Literal["pipeline"]
    path: str
    """Folder of a pipeline (model_index.json), relative to the project: Stable Diffusion, SDXL,
    SD3, Flux or PixArt. Nothing is downloaded, and none of its code is run."""
    length: int | None = Field(default=None, ge=1, le=4096)
    """Tokens of T5: longer texts are cut, shorter ones are padded. null is the pipeline's own
    number; leave it out for a pipeline without T5."""

    def digest(self) -> str:
        """Return the hash of the encoders, their tokenizers, and what says how they are joined."""
        index, root = self._index(), Path(self.path)
        said = {key: index[key] for key in sorted(index) if _of_texts(key)}
        said |= {"joined": [index["_class_name"], index.get("force_zeros_for_empty_prompt")]}
        files = (file for name in said for file in _files(root, f"{name}/**/*"))
        return _sha256_of(files, said)

    def encode(self, texts: Sequence[str]) -> Embedded:
        """Return the tokens and the pooled vector of each text, as the pipeline's network gets."""
        pipe = self._loaded()
        takes = inspect.signature(pipe.encode_prompt).parameters
        if self.length is not None and "max_sequence_length" not in takes:
            raise ReflowError(
                f"{self._where}: length is for T5, and {type(pipe).__name__} has none; leave it out"
            )
        given = {
            "prompt_2": None, "prompt_3": None, "device": torch.device("cpu"),
            "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
            **({} if self.length is None else {"max_sequence_length": self.length}),
        }  # fmt: skip
        given = {name: value for name, value in given.items() if name in takes}
        try:
            return _joined(self._of(pipe, part, given) for part in _cut(texts))
        except (*WRONG, IndexError) as error:
            raise ReflowError(f"{self._where}: it cannot embed a text ({_said(error)})") from None

    @torch.no_grad()
    def _of(self, pipe: Any, texts: list[str], given: dict[str, Any]) -> tuple[Tensor, ...]:
        found = pipe.encode_prompt(prompt=texts, **given)
        masked, pooled = PIPELINES[type(pipe).__name__]
        mask = torch.ones(found[0].shape[:2]) if masked is None else found[masked]
        kept = _kept(found[0], mask, None if pooled is None else found[pooled])
        if not pipe.config.get("force_zeros_for_empty_prompt"):
            return kept
        there = torch.tensor([bool(text) for text in texts])  # SDXL knows no text as zeros
        return kept[0] * there[:, None, None], kept[1], kept[2] * there[:, None]

    @property
    def _where(self) -> str:
        return f"data.conditions.encoder.path: {self.path}"

    def _index(self) -> dict[str, Any]:
        file = Path(self.path) / "model_index.json"
        index = config_in(file)
        kind = index.get("_class_name")
        if not isinstance(kind, str) or kind not in PIPELINES:
            raise ReflowError(
                f"{file}: pipeline {kind}, expected one of {', '.join(PIPELINES)}; or join its"
                " encoders in a class of your own (name: custom)"
            )
        return index

    def _loaded(self) -> Any:
        """Return the pipeline with its encoders alone."""
        index, root, of = self._index(), Path(self.path), _transformers()
        parts = {name: entry for name, entry in index.items() if isinstance(entry, list)}
        given: dict[str, Any] = {
            name: None for name in parts if not _of_texts(name) or parts[name] == [None, None]
        }
        try:
            for name, (_, kind) in parts.items():
                if name.startswith("text_encoder") and name not in given:
                    given[name] = _whole(getattr(of, kind), root / name)
                elif name not in given:
                    _check_tokens(getattr(of, kind), root / name)
            if "text_encoder_3" in given and given["text_encoder_3"] is None:
                # SD3 takes zeros in place of T5, as wide as its network says.
                config = config_in(root / "transformer" / "config.json")
                with torch.device("meta"):
                    given["transformer"] = diffusers().SD3Transformer2DModel.from_config(config)
            return getattr(diffusers(), index["_class_name"]).from_pretrained(
                self.path, **LOCAL, **given
            )
        except WRONG as error:
            raise ReflowError(
                f"{self._where}: no pipeline whose text encoders can be read ({_said(error)})"
            ) from None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ReflowError(
            "data.conditions.encoder: needs transformers; `pip install 'reflow-chain[text]'`"
        ) from error
    said: Any = transformers.utils.logging
    said.set_verbosity_error()
    said.disable_progress_bar()
    return transformers


def _whole(kind: Any, folder: Path) -> Any:
    """Return a text encoder in float32; raise ValueError if its folder lacks weights of it."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder.name} has no config.json")
    made, lacking = _made(kind, str(folder))
    if lacking:
        raise ValueError(f"{folder.name} has no {min(lacking)} of its config")
    return made.eval()


def _made(kind: Any, folder: str, **more: Any) -> tuple[Any, set[str]]:
    """Return a model in float32, and the names of the weights that its folder lacks."""
    made, info = kind.from_pretrained(
        folder, **LOCAL, **more, dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    other = (name for name, *_ in info["mismatched_keys"])  # each with its shapes
    return made, {*info["missing_keys"], *other}


def _check_tokens(kind: Any, folder: Path) -> None:
    """Raise ValueError if a tokenizer has no vocabulary: transformers would take an empty one."""
    files = kind.vocab_files_names.values()  # none for one of bytes
    if files and not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder.name} has no vocabulary of a tokenizer: {' or '.join(files)}")


def _of_texts(name: str) -> bool:
    """Say whether a part of a pipeline is a text encoder or a tokenizer."""
    return name.startswith(("text_encoder", "tokenizer"))


def _kept(tokens: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [N, L, E] where they are there, the mask, and a sum of each text [N, P]."""
    mask = mask.bool()
    tokens = tokens.float() * mask[..., None]
    if pooled is None:
        pooled = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return tokens.half(), mask, pooled.float()


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> Embedded:
    tokens, mask, pooled = (torch.cat(each) for each in zip(*parts, strict=True))
    return Embedded(tokens, mask, pooled)


def _cut(texts: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(texts), AT_ONCE):
        yield list(texts[first : first + AT_ONCE])


def _files(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield each file of a folder that fits a pattern, and its name from there."""
    for file in root.glob(pattern):
        if file.is_file():
            yield file.relative_to(root).as_posix(), file


def _sha256_of(files: Iterable[tuple[str, Path]], said: dict[str, Any] | None = None) -> str:
    named = {**(said or {}), **{name: sha256(file) for name, file in files}}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
