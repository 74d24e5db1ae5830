"""Draw samples with torch alone: python sample.py [COUNT] [FILE.pt] [SEED] [LABEL or "A TEXT"]."""

import json
import sys
from pathlib import Path

import torch

words = [*sys.argv[1:], *["16", "samples.pt", "0", "0"][len(sys.argv) - 1 :]]
count, file, seed = int(words[0]), words[1], int(words[2])
file_of_texts = Path(__file__).with_name("texts.json")
texts = json.loads(file_of_texts.read_text()) if file_of_texts.exists() else []
if words[3] not in texts and not words[3].isdecimal():
    sys.exit(f"{words[3]!r}: expected a number, or one of the {len(texts)} texts in texts.json")
label = texts.index(words[3]) if words[3] in texts else int(words[3])
flow = torch.export.load(Path(__file__).with_name("flow.pt2"))
inputs = [n.meta["val"] for n in flow.graph.nodes if n.name in flow.graph_signature.user_inputs]
noise = torch.randn(count, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(seed))
given = [noise] + [torch.full((count,), label)] * (len(inputs) - 1)
with torch.no_grad():
    samples = flow.module()(*given)
torch.save(samples, file)
print(f"{file}: {list(samples.shape)}, mean {samples.mean():.4f}, std {samples.std():.4f}")
