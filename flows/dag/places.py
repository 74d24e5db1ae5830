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
    ("data.conditions", "folder"): ("path", None),
    ("yardstick.features", "inception"): ("weights", None),
    ("yardstick.features", "dinov2"): ("weights", None),
    ("train.loss", "perceptual"): ("weights", None),
    **{("import", kind): ("path", None) for kind in IMPORTS},
}
"""Settings that name a file or a folder: {(place, name or kind): (key, default path)}."""

READER = {
    "data": "prepare",
    "source": "prepare",
    "data.conditions": "prepare",
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
