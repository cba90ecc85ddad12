"""Training regimes: each makes a series of saves by really training, with fixed seeds, on one core.

They differ in what decides how much a store can save: which weights move between two saves and how far, what the
optimizer keeps, the element type, and how the files are named. Learning rates, steps between saves and element types
are those of practice; models (3 to 13 million parameters) and data (a synthetic language) are as small as it takes for
all of them to be trained in some minutes. A fine-tune starts from a model that has learnt another language.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import train
from safetensors.torch import load_file, save_file
from series import NewSave, Recipe, made, saves_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import SGD, AdamW, Optimizer
from train import Language, Model

BATCH = 4
SAVES = 8
SINGLE_STEP_SAVES = 12
LONG_SAVES = 40
RUNS, RUN_SAVES = 8, 5
BASE_STEPS = 100
LARGE_WIDTH = 512
RANK = 8
EXPERTS = 16


def series(recipe: Recipe, seed: int) -> Path:
    """Return the series of a regime, training now if it is not there yet."""
    return made(recipe, seed, [Path(train.__file__), Path(__file__)])


def demo(seed: int, new_save: NewSave) -> None:
    """The demo's run: fp32 and AdamW, every other state also in a file of its own, the trunk frozen halfway."""
    _demo(seed, new_save, train.SAVES, only_frozen=False)


def demo_frozen(seed: int, new_save: NewSave) -> None:
    """The demo's run after its trunk was frozen, ten saves over one file."""
    _demo(seed, new_save, train.SAVES // 2 + train.SAVES, only_frozen=True)


def full_adamw(seed: int, new_save: NewSave) -> None:
    """Weights and both AdamW moments in fp32, trained from the start at 3e-4, 50 steps apart."""
    model = Model()
    optimizer = AdamW(model.parameters(), lr=3e-4)
    for _ in _steps(model, optimizer, Language(seed), apart=50):
        torch.save(_state(model, optimizer), new_save() / "last.pt")


def fp32_finetune(seed: int, new_save: NewSave) -> None:
    """Weights in fp32, fine-tuned with AdamW at 1e-5, 20 steps apart."""
    model = _base_model(base_large, seed)
    for _ in _steps(model, AdamW(model.parameters(), lr=1e-5), Language(seed + 1), apart=20):
        save_file(model.state_dict(), new_save() / "model.safetensors")


def bf16_finetune(seed: int, new_save: NewSave) -> None:
    """What the run of fp32-finetune saves when it casts its weights to bf16."""
    for (file,) in saves_of(series(fp32_finetune, seed)):
        save_file(_in_bf16(load_file(file)), new_save() / "model.safetensors")


def rl_bf16(seed: int, new_save: NewSave) -> None:
    """Weights in bf16 over fp32 masters, AdamW at 1e-6 as in reinforcement learning, a save for every step."""
    model = _base_model(base_large, seed)
    optimizer = AdamW(model.parameters(), lr=1e-6)
    for _ in _steps(model, optimizer, Language(seed + 1), apart=1, saves=SINGLE_STEP_SAVES):
        save_file(_in_bf16(model.state_dict()), new_save() / "policy.safetensors")


def frozen_trunk(seed: int, new_save: NewSave) -> None:
    """Weights in fp32 and AdamW of the last layer and the head, which alone are trained, at 3e-4, 50 steps apart."""
    model = _base_model(base, seed)
    model.freeze_trunk()
    optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-4)
    for _ in _steps(model, optimizer, Language(seed + 1), apart=50):
        torch.save(_state(model, optimizer), new_save() / "last.pt")


class LowRank(nn.Module):
    """A matrix plus the product of two thin ones, which begins as zero."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, columns) * 0.02)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return weight + self.up @ self.down


def lora(seed: int, new_save: NewSave) -> None:
    """The base in fp32 in a file of its own, then base and LoRA adapters together with the adapters' AdamW."""
    model = _base_model(base_large, seed)
    torch.save(model.state_dict(), new_save() / "base.pt")
    model.requires_grad_(False)
    for module in list(model.layers.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim == 2:
                parametrize.register_parametrization(module, name, LowRank(*weight.shape))
    optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    for _ in _steps(model, optimizer, Language(seed + 1), apart=10):
        torch.save(_state(model, optimizer), new_save() / "last.pt")


def lora_adapters(seed: int, new_save: NewSave) -> None:
    """The adapters of the series lora and their AdamW alone: what lora takes beyond this is the base's share."""
    _, *saves = saves_of(series(lora, seed))
    for (file,) in saves:
        state = torch.load(file)
        adapters = {name: weight for name, weight in state["model"].items() if name.endswith((".up", ".down"))}
        torch.save(state | {"model": adapters}, new_save() / "adapters.pt")


def growing_vocabulary(seed: int, new_save: NewSave) -> None:
    """Weights in fp32, AdamW at 1e-4, 10 steps apart; between them embedding and head get 512 rows more."""
    vocabulary = 8192
    model = Model(vocabulary=vocabulary)
    nn.init.normal_(model.embedding.weight, std=0.02)
    for number in range(SAVES):
        optimizer = AdamW(model.parameters(), lr=1e-4)
        for _ in _steps(model, optimizer, Language(seed, vocabulary), apart=10, saves=1):
            save = new_save() / f"checkpoint-{(number + 1) * 10}"
            save.mkdir()
            save_file(model.state_dict(), save / "model.safetensors")
        vocabulary += 512
        model.embedding.weight = _grown(model.embedding.weight, vocabulary)
        model.head.weight = _grown(model.head.weight, vocabulary)
        model.head.bias = _grown(model.head.bias, vocabulary)


class Experts(nn.Module):
    """A layer of experts, one of which works on each sentence; the others get no gradient from it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(EXPERTS)
        )

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        """Return what is handed in, (batch, context, width), plus what the experts chosen for it say."""
        weights = self.gate(hidden.mean(dim=1)).softmax(dim=-1)
        choices = weights.argmax(dim=-1).tolist()
        return torch.stack(
            [
                sentence + weights[row, choice] * self.experts[choice](sentence)
                for row, (sentence, choice) in enumerate(zip(hidden, choices, strict=True))
            ]
        )


def moe(seed: int, new_save: NewSave) -> None:
    """Weights in fp32 of a mixture of 16 experts in two layers, at most four touched, AdamW at 1e-4, one step apart."""
    model = Model()
    model.layers.insert(2, Experts(train.WIDTH))
    model.layers.append(Experts(train.WIDTH))
    optimizer = AdamW(model.parameters(), lr=1e-4)
    for _ in _steps(model, optimizer, Language(seed), apart=1, saves=SINGLE_STEP_SAVES):
        torch.save(model.state_dict(), new_save() / "last.pt")


def sgd(seed: int, new_save: NewSave) -> None:
    """Weights and momentum in fp32, SGD at 0.01, 20 steps apart, each save in a file of its own."""
    model = _base_model(base, seed)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in _steps(model, optimizer, Language(seed + 1), apart=20):
        torch.save(_state(model, optimizer), new_save() / f"step-{step}.pt")


def pt_and_safetensors(seed: int, new_save: NewSave) -> None:
    """The weights of bf16-finetune twice in each save, as .pt and as .safetensors."""
    for (file,) in saves_of(series(bf16_finetune, seed)):
        save, weights = new_save(), load_file(file)
        torch.save(weights, save / "model.pt")
        save_file(weights, save / "model.safetensors")


def long_run(seed: int, new_save: NewSave) -> None:
    """Weights in bf16, fine-tuned with AdamW at 1e-5, 20 steps apart, 40 saves over one file."""
    model = _base_model(base, seed)
    for _ in _steps(model, AdamW(model.parameters(), lr=1e-5), Language(seed + 1), apart=20, saves=LONG_SAVES):
        save_file(_in_bf16(model.state_dict()), new_save() / "model.safetensors")


def many_runs(seed: int, new_save: NewSave) -> None:
    """Eight such runs of one base side by side, five saves each, in directories of their own behind the base's file."""
    model = _base_model(base, seed)
    save_file(_in_bf16(model.state_dict()), new_save() / "base.safetensors")
    models = [_base_model(base, seed) for _ in range(RUNS)]
    runs = [
        _steps(model, AdamW(model.parameters(), lr=1e-5), Language(seed + 1 + run), apart=20, saves=RUN_SAVES)
        for run, model in enumerate(models)
    ]
    for _ in zip(*runs, strict=True):
        for run, model in enumerate(models):
            directory = new_save() / f"run-{run}"
            directory.mkdir()
            save_file(_in_bf16(model.state_dict()), directory / "model.safetensors")


def base(seed: int, new_save: NewSave) -> None:
    """A pretrained model, saved once."""
    _pretrain(Model(), seed, new_save)


def base_large(seed: int, new_save: NewSave) -> None:
    """A pretrained model of 13 million parameters, saved once."""
    _pretrain(Model(LARGE_WIDTH), seed, new_save)


def _pretrain(model: Model, seed: int, new_save: NewSave) -> None:
    for _ in _steps(model, AdamW(model.parameters(), lr=3e-4), Language(seed), apart=BASE_STEPS, saves=1):
        torch.save(model.state_dict(), new_save() / "base.pt")


def _base_model(recipe: Recipe, seed: int) -> Model:
    """Return the model that `base` or `base_large` has pretrained."""
    ((file,),) = saves_of(series(recipe, seed))
    weights = torch.load(file)
    model = Model(width=weights["embedding.weight"].shape[1])
    model.load_state_dict(weights)
    return model


def _steps(model: Model, optimizer: Optimizer, language: Language, *, apart: int, saves: int = SAVES) -> Iterator[int]:
    """Train, and yield the number of steps so far whenever a save is due."""
    for step in range(1, apart * saves + 1):
        optimizer.zero_grad()
        model.loss(language.batch(step, BATCH)).backward()
        optimizer.step()
        if step % apart == 0:
            yield step


def _demo(seed: int, new_save: NewSave, saves: int, *, only_frozen: bool) -> None:
    """Keep the saves of the demo's run, or of its frozen part those over `last.pt`."""
    is_frozen = train.SAVES * train.STEPS_PER_SAVE // 2
    with tempfile.TemporaryDirectory() as out:

        def keep(step: int, files: list[Path]) -> None:
            if only_frozen and step <= is_frozen:
                return
            save = new_save()
            for file in files[:1] if only_frozen else files:
                (save / file.name).write_bytes(file.read_bytes())

        train.train(train.Run(Path(out), saves=saves, seed=seed), keep)


def _state(model: Model, optimizer: Optimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def _in_bf16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()}


def _grown(weight: Tensor, rows: int) -> nn.Parameter:
    """Return a parameter with new rows behind those of `weight`."""
    new = torch.randn(rows - len(weight), *weight.shape[1:]) * 0.02
    return nn.Parameter(torch.cat([weight.detach(), new]))
