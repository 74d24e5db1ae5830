"""The places of params.yaml that name files and own classes, and which verb reads them."""

DATA_FILES: dict[str, tuple[str, str | None]] = {
    "images": ("root", None),
    "array": ("path", None),
    "cifar10": ("root", None),
    "fashion_mnist": ("root", "/usr/share/datasets/fashion-mnist"),
    "emoji": ("font", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
}

IMPORTS = ("parquet", "datasets", "npy", "npz", "safetensors", "pt", "webdataset")
"""Kinds of pairs from outside that are files at a path."""

NAMED_FILES: dict[tuple[str, str], tuple[str, str | None]] = {
    **{(at, name): key for at in ("data", "source") for name, key in DATA_FILES.items()},
    ("data.conditions.encoder", "folder"): ("path", None),
    ("yardstick.features", "inception"): ("weights", None),
    ("yardstick.features", "dinov2"): ("weights", None),
    ("train.loss", "perceptual"): ("weights", None),
    **{("import", kind): ("path", None) for kind in IMPORTS},
    ("data.conditions.encoder", "pipeline"): ("path", None),
}
"""Settings that name a file or a folder: {(place, name or kind): (key, default path)}."""

READER = {
    "data": "prepare",
    "source": "prepare",
    "data.conditions.encoder": "prepare",
    "yardstick.features": "calibrate",
    "train.loss": "train",
    "import": "couple",
}
"""By place: the verb that reads these files; the others read what it made of them."""

PROTOCOL = ("weights", "statistics", "dinov2", "clip")
"""Settings of yardstick.protocol that name a file, which `calibrate` reads."""

READS = {
    "prepare": ("data", "source", "compute"),
    "initialise": ("network",),
    "calibrate": ("yardstick", "data.codec"),
    "train": ("network", "rounds.{key}.train"),
    "adopt": ("rounds.{key}.model",),  # the stage train of a round with `model`
    "couple": (
        "network",
        "couplings.{key}",
        "couplings.{key}.import",
        "rounds.{round}.train.interpolant",
    ),
    "evaluate": ("network", "evaluate", "yardstick", "data", "rounds.{key}.train.interpolant"),
    "compare": (),
}
"""For each verb, the places of params.yaml whose files and own classes it reads."""

SECTIONS = {"model": "rounds", "train": "rounds", "import": "couplings"}
"""The section of params.yaml that a place lies in where each round or coupling has its own."""


def in_params(place: str, key: str) -> str:
    """Return a place as params.yaml has it, for the stage of the round or coupling `key`.

    >>> in_params("import.path", "rf1"), in_params("data.path", "")
    ('couplings.rf1.import.path', 'data.path')
    """
    section = SECTIONS.get(place.partition(".")[0])
    return f"{section}.{key}.{place}" if section else place
