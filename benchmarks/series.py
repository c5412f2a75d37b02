"""Series of checkpoints as training really writes them: small models, trained for a few seconds.

`SERIES` names them. Each takes a directory and yields the path of one version after another; a
version is overwritten by the next, as in a training loop. Seeds are fixed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS = 6  # between two checkpoints
State = dict[str, Any]
Series = Callable[[Path], Iterator[Path]]
MIB = 1 << 20


def backbone_and_head() -> tuple[nn.Sequential, nn.Linear]:
    """A convolutional network of 27 MB with BatchNorm, and a head to train on it."""
    layers: list[nn.Module] = []
    widths = [3, 64, 64, 128, 128, 256, 256, 512, 512, 512]
    for i in range(len(widths) - 1):
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=1 + i % 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(512, 10)


def frozen_backbone(*, running: bool, versions: int = 8) -> Iterator[State]:
    """Fine-tuning of a head only; `running`: BatchNorm goes on to adapt its statistics."""
    torch.manual_seed(1)
    backbone, head = backbone_and_head()
    backbone.requires_grad_(False).train(running)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for epoch in range(versions):
        for _ in range(STEPS):
            images, labels = torch.randn(16, 3, 24, 24), torch.randint(10, (16,))
            loss = nn.functional.cross_entropy(head(backbone(images)), labels)
            descend(optimizer, loss)
        model = {"backbone": backbone.state_dict(), "head": head.state_dict()}
        yield {**model, "optimizer": optimizer.state_dict(), "epoch": epoch, "loss": loss.item()}


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        attention = nn.functional.scaled_dot_product_attention
        x = x + self.o(attention(self.q(y), self.k(y), self.v(y), is_causal=True))
        return x + self.narrow(nn.functional.gelu(self.widen(self.norm2(x))))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """A transformer of 23 MB."""

    def __init__(self, words: int = 2000, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.out = nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.blocks(self.embed(tokens)))  # type: ignore[no-any-return]


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> Iterator[int]:
    """Learn sequences in which each word is the last one plus one, with some noise."""
    for epoch in range(epochs):
        for _ in range(STEPS):
            tokens = (torch.randint(2000, (8, 1)) + torch.arange(33)) % 2000
            tokens = torch.where(torch.rand(8, 33) < 0.1, torch.randint(2000, (8, 33)), tokens)
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            descend(optimizer, loss)
        yield epoch


def lora(versions: int = 8) -> Iterator[State]:
    """Adapters trained on a frozen transformer, everything saved together."""
    torch.manual_seed(2)
    model = LanguageModel().requires_grad_(False)
    for block in model.blocks:
        block.q, block.v = Adapted(block.q), Adapted(block.v)  # type: ignore[arg-type]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for epoch in train(model, optimizer, versions):
        yield {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def dense(versions: int = 8) -> Iterator[State]:
    """All of a transformer trained with Adam, whose state is saved with it."""
    torch.manual_seed(3)
    model = LanguageModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in train(model, optimizer, versions):
        yield {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def bfloat16(versions: int = 8) -> Iterator[State]:
    """The weights of such a transformer, in half the precision."""
    for state in dense(versions):
        yield {name: value.bfloat16() for name, value in state["model"].items()}


def sparse(versions: int = 8) -> Iterator[State]:
    """A table of embeddings of which each step touches a few rows, with SparseAdam."""
    torch.manual_seed(4)
    table, head = nn.Embedding(60_000, 64, sparse=True), nn.Linear(64, 1)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=1e-2)
    popularity = 1 / torch.arange(1, 60_001)
    for epoch in range(versions):
        for _ in range(STEPS):
            rows = torch.multinomial(popularity, 512, replacement=True)
            descend(optimizer, (head(table(rows)).squeeze() - rows % 2).square().mean())
        yield {"table": table.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}


def growing(versions: int = 8) -> Iterator[State]:
    """A frozen transformer that gains words, and some megabytes, with each version."""
    torch.manual_seed(5)
    state = LanguageModel().state_dict()
    for _ in range(versions):
        state = copy.copy(state)
        state["embed.weight"] = torch.cat([state["embed.weight"], torch.randn(2000, 256)])
        yield state


def saved(states: Callable[[], Iterator[State]], *, zipped: bool = True) -> Series:
    """The series of files that `torch.save` makes of `states`; not `zipped`: in its old format."""

    def series(directory: Path) -> Iterator[Path]:
        path = directory / "model.pth"
        for state in states():
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            yield path

    return series


def safetensors_frozen(directory: Path) -> Iterator[Path]:
    path = directory / "model.safetensors"
    for state in frozen_backbone(running=True):
        tensors = {**state["backbone"], **{f"head.{k}": v for k, v in state["head"].items()}}
        save_file(tensors, path, {"epoch": str(state["epoch"])})
        yield path


def npz_frozen(directory: Path) -> Iterator[Path]:
    path = directory / "model.npz"
    for state in frozen_backbone(running=True):
        np.savez(path, **{k: v.numpy() for k, v in (state["backbone"] | state["head"]).items()})
        yield path


def best_and_last(directory: Path) -> Iterator[Path]:
    """The same state saved under two names."""
    for state in dense(versions=1):
        for name in ("best.pth", "last.pth"):
            torch.save(state, directory / name)
            yield directory / name


def opaque_frozen(directory: Path) -> Iterator[Path]:
    """Ten versions of 200 MiB in no known format; a tenth of each, in one piece, is new."""
    rng = np.random.default_rng(6)
    before, after = rng.bytes(140 * MIB), rng.bytes(40 * MIB)
    path = directory / "model.bin"
    for _ in range(10):
        path.write_bytes(before + rng.bytes(20 * MIB) + after)
        yield path


def opaque_scattered(directory: Path) -> Iterator[Path]:
    """The same with the tenth that is new in twenty pieces."""
    rng = np.random.default_rng(7)
    frozen = [rng.bytes(9 * MIB) for _ in range(20)]
    path = directory / "model.bin"
    for _ in range(10):
        path.write_bytes(b"".join(part + rng.bytes(MIB) for part in frozen))
        yield path


def opaque_insertions(directory: Path) -> Iterator[Path]:
    """Five versions of 100 MiB, each with 4 KiB more near the front."""
    rng = np.random.default_rng(8)
    content = rng.bytes(100 * MIB)
    path = directory / "model.bin"
    for _ in range(5):
        path.write_bytes(content)
        yield path
        content = content[:5000] + rng.bytes(4096) + content[5000:]


SERIES: dict[str, Series] = {
    "frozen backbone": saved(lambda: frozen_backbone(running=False)),
    "frozen, BatchNorm running": saved(lambda: frozen_backbone(running=True)),
    "same as .safetensors": safetensors_frozen,
    "same as .npz": npz_frozen,
    "same, torch's old format": saved(lambda: frozen_backbone(running=True), zipped=False),
    "LoRA saved whole": saved(lora),
    "best.pth + last.pth": best_and_last,
    "frozen, growing vocabulary": saved(growing),
    "dense fp32 + Adam": saved(dense),
    "dense bf16": saved(bfloat16),
    "embeddings, SparseAdam": saved(sparse),
    "opaque, 90% frozen": opaque_frozen,
    "opaque, 90% frozen, scattered": opaque_scattered,
    "opaque, 4 KiB inserted": opaque_insertions,
}
