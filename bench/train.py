#!/usr/bin/env python3
"""Train a small language model and save it as people do: knows PyTorch, and nothing of where its files go.

A transformer of 3.3 million parameters learns a synthetic language. Every save writes the full state (weights, AdamW
moments, step) to `last.pt`, over the one before; every second save also goes to a file of its own, `step-N.pt`. For the
second half of the run everything but the last layer and the head is frozen. `train.log` stays open for appending; for
every save it has the SHA-256 of the state in memory, so that a file can be checked against what the trainer meant.

    train.py --out DIR [--resume FILE] [--saves N] [--seed N] [--lr RATE] [--pace SECONDS]
    train.py --digest FILE          print the SHA-256 of the state in a file, as the log has it
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 256
WIDTH = 256
LAYERS = 4
HEADS = 4
CONTEXT = 64
BATCH = 8
SUCCESSORS = 4
STEPS_PER_SAVE = 8
SAVES = 10
LEARNING_RATE = 1e-3


class Model(nn.Module):
    """A causal transformer."""

    def __init__(self, width: int = WIDTH, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position: (batch, context, vocabulary)."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy of every token given those before it."""
        return nn.functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def freeze_trunk(self) -> None:
        """Let only the last layer and the head go on learning."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith((f"layers.{LAYERS - 1}.", "head.")))


class Language:
    """Sentences in which every word has few successors: learnable, and made anew from seed and step."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self.seed = seed
        self.vocabulary = vocabulary
        generator = torch.Generator().manual_seed(seed)
        self.successors = torch.randint(vocabulary, (vocabulary, SUCCESSORS), generator=generator)

    def batch(self, step: int, size: int = BATCH) -> Tensor:
        """Return tokens of shape (size, context + 1)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        words = [torch.randint(self.vocabulary, (size,), generator=generator)]
        for _ in range(CONTEXT):
            choice = torch.randint(SUCCESSORS, (size,), generator=generator)
            words.append(self.successors[words[-1], choice])
        return torch.stack(words, dim=1)


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nested state with its place, in a fixed order."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from leaves_of(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves_of(item, f"{name}/{index}")
    else:
        yield name, value


def digest(state: dict[str, Any]) -> str:
    """Return the SHA-256 of a state: of every name, type, shape and byte in it."""
    sha256 = hashlib.sha256()
    for name, value in leaves_of(state):
        if isinstance(value, Tensor):
            sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha256.update(
                value.detach().contiguous().view(torch.uint8).numpy() if value.ndim else repr(value.item()).encode()
            )
        else:
            sha256.update(f"{name} {value!r}\n".encode())
    return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class Run:
    """What to train: until `saves` saves since the start of the run are made, at least `pace` seconds apart."""

    out: Path
    resume: Path | None = None
    saves: int = SAVES
    seed: int = 0
    learning_rate: float = LEARNING_RATE
    pace: float = 0.0


def train(run: Run, on_save: Callable[[int, list[Path]], None] = lambda step, files: None) -> None:
    """Train and save; `on_save` hears of every save the step and the files."""
    torch.set_num_threads(1)  # the same sums on every machine, and as fast as two threads for so small a model
    torch.manual_seed(run.seed)
    model, language, first = Model(), Language(run.seed), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    if run.resume:
        state = torch.load(run.resume)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate
        first = state["step"]
    run.out.mkdir(parents=True, exist_ok=True)
    saved_at = time.monotonic()
    with open(run.out / "train.log", "a", buffering=1) as log:
        for step in range(first + 1, run.saves * STEPS_PER_SAVE + 1):
            if step > SAVES * STEPS_PER_SAVE // 2:
                model.freeze_trunk()
            loss = model.loss(language.batch(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % STEPS_PER_SAVE:
                continue
            # A small model on a fast machine would save several times a second, which no training run does.
            time.sleep(max(0.0, saved_at + run.pace - time.monotonic()))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            files = [run.out / "last.pt"]
            if step // STEPS_PER_SAVE % 2 == 0:
                files.append(run.out / f"step-{step}.pt")
            started = time.monotonic()
            for file in files:
                torch.save(state, file)
            saved_at = time.monotonic()
            line = f"step {step:4} loss {loss.item():.4f} saved {' '.join(file.name for file in files)}"
            print(f"{line} in {saved_at - started:.2f} s", flush=True)
            log.write(f"{line} state {digest(state)}\n")
            on_save(step, files)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train a small language model and save it about ten times.")
    parser.add_argument("--out", type=Path, help="the directory to save in")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from this file")
    parser.add_argument("--saves", type=int, default=SAVES, help="end after this many saves since the start of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, metavar="RATE", help="the learning rate")
    parser.add_argument("--pace", type=float, default=0.0, metavar="SECONDS", help="the least time between two saves")
    parser.add_argument("--digest", type=Path, metavar="FILE", help="print the SHA-256 of the state in a file")
    arguments = parser.parse_args()
    if arguments.digest:
        print(digest(torch.load(arguments.digest)))
    elif arguments.out:
        train(Run(arguments.out, arguments.resume, arguments.saves, arguments.seed, arguments.lr, arguments.pace))
    else:
        parser.error("one of --out and --digest is needed")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
