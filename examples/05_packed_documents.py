"""Pack real files into one sequence of 32,768 tokens; a token attends only inside its own file."""

import os
from pathlib import Path

import torch

import flexspec as fs

LENGTH = 32_768
files = sorted(Path(os.__file__).parent.glob("*.py"), key=lambda path: path.stat().st_size)
parts, names = [], []
for path in files[20:]:
    words = path.read_text(errors="replace").split()
    room = LENGTH - sum(map(len, parts))
    if room <= 0:
        break
    parts.append([hash_ % 1000 for hash_ in map(len, words)][:room])
    names.append(path.name)
tokens = torch.tensor(sum(parts, []))
ids = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])[None]
ids = torch.nn.functional.pad(ids, (0, LENGTH - ids.shape[1]), value=-1)  # a negative id is padding
tokens = torch.nn.functional.pad(tokens, (0, LENGTH - len(tokens)))
print(f"{len(parts)} files, {names[0]} to {names[-1]}, {int((ids >= 0).sum()):,} tokens")

attend = fs.compile(fs.causal & fs.document())
blocks = attend.block_map(LENGTH, document_id=ids)
print(blocks)

torch.manual_seed(0)
q, k, v = (torch.randn(1000, 3 * 16)[tokens].view(1, LENGTH, 3, 1, 16).permute(2, 0, 3, 1, 4).contiguous()).unbind(0)
out = attend(q, k, v, document_id=ids)
last = int(ids.max())
where = (ids[0] == last).nonzero()[:, 0]  # the last file alone must give the same
alone = fs.reference_attention(fs.causal(), *(x[:, :, where] for x in (q, k, v)))
error = (out[:, :, where] - alone).abs().max()
print(f"{names[last]} packed against {names[last]} alone: largest difference {error:.1e}")
assert error < 1e-5
print("picture:", blocks.show(Path("out") / "05_documents.png"))
