"""Flow maps on networks that others trained: every rule trains, and what follows from it works."""

import json

import diffusers
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling
from fmcore.evaluate import Evaluate, evaluate
from fmcore.matching.interpolant import expand
from fmcore.network.adapter import Lora
from fmcore.network.build import with_spans
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.work import Work
from tests import diffusers_folders as folders
from tests.fmcore.network.test_outside_spans import RULES
from tests.fmcore.network.test_predictions import CLASSES
from tests.fmcore.test_adopt import adopted, coupling

ONE = Solver(name="euler", steps=1)
