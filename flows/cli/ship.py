"""`reflow ship`: aliases of the registered model, or a folder that other tools load."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import complete
from flows.cli.console import one_line_errors, out, project
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.compare.chains import ComparedChain
    from fmcore.network.store import Model
    from fmcore.solve.solver import Solver

Nfe = Annotated[int | None, typer.Option(min=1, help="With --to: steps of Euler. Default: 1.")]
Shift = Annotated[
    float, typer.Option(min=1e-3, max=1e3, help="With --to: moves the grid, as solver.shift does.")
]
Times = Annotated[
    str | None, typer.Option(help="With --to: a grid of your own, such as 1,0.8,0.5,0.")
]


def ship(  # noqa: PLR0913  # each is an option of the command
    round_: Annotated[
        str | None,
        typer.Argument(
            metavar="[ROUND]", help="The round, such as rf2.", autocompletion=complete.rounds
        ),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option("--as", help="one_step, few_step or best; may be repeated. Default: all."),
    ] = None,
    rule: Annotated[
        bool, typer.Option("--rule", help="Let the rule say again who has the aliases.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(help="Write the round to this new folder, as diffusers loads it; no alias."),
    ] = None,
    nfe: Nfe = None,
    shift: Shift = 1.0,
    times: Times = None,
    export: Annotated[
        bool, typer.Option("--export", help="With --to: also flow.pt2, which torch alone loads.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="With --to: also flow.onnx.")] = False,
    guidance: Annotated[
        float, typer.Option(min=0, help="With --export, --onnx: guidance that is in the graph.")
    ] = 1.0,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="With --to: for the card: mit.")
    ] = None,
) -> None:
    """Move the aliases of the registered model to ROUND, or hand ROUND on as a folder (`--to`)."""
    with one_line_errors():
        if to is not None:
            if round_ is None or rule or use:
                raise ReflowError("--to: expected a round, such as rf2; neither --as nor --rule")
            solver = solver_of(nfe, shift, times)
            lines = HandOn(to, solver, export, onnx, guidance, licence).write(project(), round_)
        else:
            if (round_ is None) != rule:
                raise ReflowError("name the round to ship, such as rf2, or give --rule: one")
            if export or onnx or nfe or shift != 1 or times or guidance != 1 or licence:
                raise ReflowError(
                    "--nfe, --shift, --times, --export, --onnx, --guidance and --licence say what"
                    " --to FOLDER writes; add it"
                )
            lines = _aliases(round_, use)
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)


def _aliases(round_: str | None, use: list[str] | None) -> list[str]:
    from flows.tracking.promotion import USES
    from flows.tracking.ship import ship as move

    return move(project(), round_, use or USES)


def solver_of(nfe: int | None, shift: float, times: str | None) -> "Solver":
    """Return Euler on the grid that the options name; raise ReflowError for one that is none."""
    from fmcore.own import read
    from fmcore.solve.solver import Solver

    if times is None:
        given = {"name": "euler", "steps": nfe or 1, "shift": shift}
        solver: Solver = read(Solver, given, "--nfe")
        return solver
    try:
        listed = [float(word) for word in times.split(",")]
    except ValueError:
        raise ReflowError(
            f"--times: expected numbers that fall from 1 to 0, such as 1,0.8,0.5,0; got {times!r}"
        ) from None
    if shift != 1 or nfe not in (None, len(listed) - 1):
        raise ReflowError("--times: is a whole grid; leave out --shift and --nfe")
    solver = read(Solver, {"name": "euler", "times": listed}, "--times")
    return solver


@dataclass(frozen=True)
class HandOn:
    """What is written for a round: the folder, Euler's grid, graphs beside it, a licence."""

    to: Path
    solver: "Solver"
    export: bool = False
    onnx: bool = False
    guidance: float = 1.0
    licence: str | None = None

    def write(self, root: Path, round_: str) -> list[str]:
        """Write a round to the new folder, whole or not at all; return what to say."""
        from flows.compare.chains import workspace_chain
        from flows.library.handed import seal
        from flows.library.models import recorded_model
        from fmcore.network.adapter import FOLDER, copy_adapter
        from fmcore.network.store import load
        from fmcore.ship.folder import refusal

        if self.to.exists() and (not self.to.is_dir() or any(self.to.iterdir())):
            raise ReflowError(f"--to: {self.to} is there already; name a new folder")
        place = recorded_model(root, round_)
        chain, model = workspace_chain(root), load(place)
        graph = self.export or self.onnx
        if (why := refusal(model)) and not graph:
            raise ReflowError(f"--to: {why}; add --export or --onnx")
        if self.guidance != 1 and not (graph and model.network.settings.classes):
            raise ReflowError(
                f"--guidance {self.guidance:g} is written into a graph of a round with classes; add"
                " --export or --onnx, or give guidance to the pipeline when it samples"
                if model.network.settings.classes
                else f"--guidance {self.guidance:g} needs a round with classes"
            )
        part = self.to.with_name(f".{self.to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            said = self._fill(part, chain, model, round_)
            if copy_adapter(place, part):
                said.append(f"{self.to / FOLDER}: the adapter alone, as peft and diffusers load it")
            if self.to.is_dir():
                self.to.rmdir()
            seal(part, "shipped")
            part.rename(self.to)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return said

    def _fill(self, part: Path, chain: "ComparedChain", model: "Model", round_: str) -> list[str]:
        from flows.compare.card import card, write
        from fmcore.ship import whole

        said, use = self._folder(part, model)
        tags = ["diffusers"] if use else []
        graph = whole.Whole(model, self.solver, self.guidance)
        if self.export:
            whole.write_export(graph, model, part / "flow.pt2")
            if graph.of_samples:
                call = 'torch.export.load("flow.pt2").module()(source)'
                use += ["", "With torch alone:", "", "```python", call, "```"]
                said.append(f"{self.to / 'flow.pt2'}: real samples of the source to samples")
            else:
                script = shutil.copyfile(whole.SCRIPT, part / whole.SCRIPT.name).name
                use += ["", "With torch alone:", "", "```sh", f"python {script} 16", "```"]
                said.append(f"{self.to / script} draws samples with torch alone, from flow.pt2")
        if self.onnx:
            whole.write_onnx(graph, model, part / "flow.onnx")
            use += ["", f"`flow.onnx` has inputs {' and '.join(whole.names(graph))}."]
            begin = whole.names(graph)[0]
            said.append(f"{self.to / 'flow.onnx'}: {begin} to samples, checked by onnxruntime")
        if (self.export or self.onnx) and (texts := whole.texts_of(model)):
            (part / whole.TEXTS).write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
            use += ["", f"`{whole.TEXTS}` lists the texts; a label is the place of one, from 0."]
            said.append(f"{self.to / whole.TEXTS}: the {len(texts):,} texts, by their label")
        if adapter := model.config.get("adapter"):
            tags.append("lora")
            use += ["", _of_adapter(adapter)]
        if graph.of_latents and (self.export or self.onnx):
            said.append("the graph gives latents: decode them with the codec of the data")
        text = card(chain, round_, self.solver, use=use, licence=self.licence, tags=tags)
        write(text, part)
        return said

    def _folder(self, part: Path, model: "Model") -> tuple[list[str], list[str]]:
        """Write what diffusers loads, if it can; return what to say, and the use for the card."""
        from fmcore.ship.folder import refusal, write_folder

        if refusal(model):
            return [], []
        try:
            form = write_folder(model, part, self.solver)
        except ReflowError as error:
            if not (self.export or self.onnx):
                raise
            shutil.rmtree(part)
            part.mkdir()
            why = str(error).removeprefix("--to: ").rsplit("; ship it", 1)[0]
            return [f"no folder for diffusers: {why}"], []
        lines = form.lines(self.to.name)
        notes = [line for note in form.notes() for line in ("", note)]
        loads = next(line for line in lines if line.startswith("pipe = "))
        said = [f"{self.to}: diffusers loads it: {loads}"]
        return said, ["```python", *lines, "```", *notes]


def _of_adapter(adapter: dict[str, Any]) -> str:
    """Return what the card says of a round that is an adapter of its start."""
    return (
        f"The round is a LoRA adapter of rank {adapter['rank']} of the model that it started from."
        " The weights here have it in them; `adapter/` is the adapter alone, which peft loads onto"
        ' that model: `PeftModel.from_pretrained(network, "adapter")`.'
    )
