"""The train stage of a round that is not trained here: it takes in the model of others."""

from dataclasses import replace
from pathlib import Path

from flows.library.models import model_at
from flows.params.adopted import teacher_of
from flows.params.load import Params
from flows.params.seeds import seed_of
from flows.stage.work import warn, work_of
from fmcore.network.teachers import DiffusersFolder, ProjectModel, RegisteredModel, Teacher
from fmcore.settings import ReflowError


def adopt_round(
    root: Path, params: Params, key: str, paths: dict[str, Path], scratch: Path
) -> None:
    """Write the model that the round `key` names, its metrics and its empty curve to `paths`."""
    from fmcore.adopt import adopt

    model = params.rounds[key].model
    assert model is not None
    work = replace(work_of(params, scratch, seed=seed_of(params, "train", key)), warn=warn)
    folder = folder_of(root, model, scratch)
    wanted = {name: paths[name] for name in ("coupling", "out", "curve", "metrics")}
    adopt(**wanted, settings=model, name=key, work=work, folder=folder)
    _suits_those_that_start_from_it(params, key, paths["out"])
    print(f"{key} is not trained here: its model is that of {_said(model)}", flush=True)


def _suits_those_that_start_from_it(params: Params, key: str, folder: Path) -> None:
    """Raise ReflowError if a round cannot train from the network in `folder`.

    Its training would say so too, after the pairs of this round were sampled for it.
    """
    from fmcore.network.build import with_spans
    from fmcore.network.outside import check_null
    from fmcore.network.store import load

    network = load(folder).network
    for name, round_ in params.rounds.items():
        train = round_.train
        if train is None or teacher_of(params, name) != key:
            continue
        place = f"rounds.{name}.train"
        try:
            if train.objective == "mean_flow":
                with_spans(network)
            if train.label_dropout:
                check_null(network.settings, f"label_dropout {train.label_dropout:g}")
        except ReflowError as error:
            raise ReflowError(f"{place}: {error}") from None


def folder_of(root: Path, model: Teacher, scratch: Path) -> Path | None:
    """Return the folder of a model of ours; None where the model is not one.

    Raises ReflowError if the project, the round or the version is not there.
    """
    if isinstance(model, RegisteredModel):
        from flows.tracking.fetch import registered

        return registered(root, model.model, model.uri, scratch / "registered")
    if not isinstance(model, ProjectModel):
        return None
    project = (root / model.path).resolve()
    if model.rev is not None:
        return model_at(project, model.rev, str(model.round), into=root).folder
    folder = project if model.round is None else project / "models" / model.round
    if not (folder / "config.json").is_file():
        what = "a model's folder" if model.round is None else f"the model of round {model.round}"
        raise ReflowError(
            f"{folder}: expected {what}, with config.json; `reflow run` or `dvc pull` there brings"
            " it, or name `round` and `rev`"
        )
    return folder


def _said(model: Teacher) -> str:
    if isinstance(model, RegisteredModel):
        return model.model
    if isinstance(model, ProjectModel):
        return " ".join(filter(None, (model.path, model.round, model.rev)))
    return model.path if isinstance(model, DiffusersFolder) else model.network.path
