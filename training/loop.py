"""One training loop for every part: resumable, seeded by step, averaged, logged."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffprivacy.demo.load import WEIGHTS, dequantized

Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Run:
    """Settings of one training run; the schedule ends at ``steps`` or after ``minutes``, whichever comes first."""

    out: Path
    steps: int
    minutes: float
    batch: int
    lr: float
    seed: int
    device: torch.device
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.999
    checkpoint_minutes: float = 3.0


def parser(description: str, **defaults: float) -> argparse.ArgumentParser:
    """The options that every training script has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("data", type=Path, help="tar of 128x128 portraits")
    arguments.add_argument("out", type=Path, help="folder of this run's checkpoints; a run found there is resumed")
    arguments.add_argument("--steps", type=int, default=int(defaults["steps"]))
    arguments.add_argument("--minutes", type=float, default=math.inf, help="stop after so many minutes of training")
    arguments.add_argument("--batch", type=int, default=int(defaults["batch"]))
    arguments.add_argument("--lr", type=float, default=defaults["lr"])
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--shipped", action="store_true", help="begin a new run at the shipped weights")
    arguments.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    return arguments


def run_of(options: argparse.Namespace, weight_decay: float = 0.01) -> Run:
    """The run that parsed options ask for."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    options.out.mkdir(parents=True, exist_ok=True)
    return Run(
        options.out, options.steps, options.minutes, options.batch, options.lr, options.seed,
        torch.device(options.device), weight_decay,
    )  # fmt: skip


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where it is fast; parameters and losses stay in float32."""
    return torch.autocast(device.type, torch.bfloat16)


def checkpoint_weights(out: Path) -> dict[str, Tensor]:
    """The averaged weights of the newest checkpoint in a run's folder."""
    state = load_file(out / "checkpoint.safetensors")
    return {name.removeprefix("ema."): tensor for name, tensor in state.items() if name.startswith("ema.")}


def shipped_weights(part: str) -> dict[str, Tensor]:
    """The shipped weights of a part in float32, as a run holds them."""
    tensors = dequantized(load_file(WEIGHTS / f"{part}.safetensors"))
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def channels_last(module: Any, device: torch.device) -> Any:
    """The module on the device, its convolution weights in the memory format that is fastest there."""
    return module.to(device=device, memory_format=torch.channels_last)


class Average:
    """Exponential moving average of a module's parameters and buffers."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = module
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                self.shadow[name].lerp_(tensor, 1 - decay)
            else:
                self.shadow[name].copy_(tensor)


def train(module: nn.Module, loss: Loss, run: Run, evaluate: Callable[[dict[str, Tensor]], str] | None = None) -> None:
    """Minimise ``loss(step, generator)`` over the module's trainable parameters, resuming what lies in ``run.out``.

    evaluate gets the averaged weights at every checkpoint and returns a line for the log.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=run.lr, betas=(0.9, 0.99), weight_decay=run.weight_decay, fused=True
    )
    average = Average(module, run.ema)
    step, spent, pictures = _resume(run, module, parameters, optimizer, average)
    started, since_checkpoint, since_log, logged = time.time(), time.time(), time.time(), step
    totals: dict[str, float] = {}

    def log(line: str) -> None:
        print(line, flush=True)
        with (run.out / "log.txt").open("a") as file:
            file.write(line + "\n")

    def seconds() -> float:
        return spent + time.time() - started

    while step < run.steps and seconds() < run.minutes * 60:
        progress = max(step / run.steps, seconds() / (run.minutes * 60))
        lr = run.lr * min(1.0, (step + 1) / run.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        generator = torch.Generator(run.device).manual_seed(run.seed * 1_000_003 + step)
        value, parts = loss(step, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        step, pictures = step + 1, pictures + run.batch
        for name, part in parts.items():
            totals[name] = totals.get(name, 0.0) + float(part)
        if step % 50 == 0 or step == run.steps:
            count, elapsed = step - logged, time.time() - since_log
            means = " ".join(f"{name} {total / count:.4f}" for name, total in totals.items())
            log(f"step {step} {seconds():.0f} s {run.batch * count / elapsed:.0f} pictures/s lr {lr:.1e} {means}")
            totals, since_log, logged = {}, time.time(), step
        if time.time() - since_checkpoint > run.checkpoint_minutes * 60:
            _save(run, module, parameters, optimizer, average, step, seconds(), pictures)
            if evaluate is not None:
                log(f"step {step} averaged: {evaluate(average.shadow)}")
            since_checkpoint = time.time()
    _save(run, module, parameters, optimizer, average, step, seconds(), pictures)
    closing = evaluate(average.shadow) if evaluate is not None else ""
    log(f"finished at step {step}: {pictures} pictures in {seconds():.0f} s on {run.device.type} {closing}")


def _state(
    module: nn.Module, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, average: Average
) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in module.state_dict().items():
        yield f"model.{name}", tensor
    for name, tensor in average.shadow.items():
        yield f"ema.{name}", tensor
    for name, parameter in parameters.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if parameter in optimizer.state:
                yield f"{key}.{name}", optimizer.state[parameter][key]


def _save(
    run: Run,
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average,
    step: int,
    seconds: float,
    pictures: int,
) -> None:
    tensors = {name: t.detach().contiguous().cpu() for name, t in _state(module, parameters, optimizer, average)}
    temporary = run.out / "checkpoint.tmp"
    save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})
    os.replace(temporary, run.out / "checkpoint.safetensors")
    summary = {"step": step, "pictures": pictures, "seconds": round(seconds), "device": run.device.type}
    (run.out / "state.json").write_text(json.dumps(summary | {"lr": run.lr, "batch": run.batch, "seed": run.seed}))


def _resume(
    run: Run,
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    average: Average,
) -> tuple[int, float, int]:
    path = run.out / "checkpoint.safetensors"
    if not path.exists():
        return 0, 0.0, 0
    state = load_file(path, device=str(run.device))
    module.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    for name, tensor in average.shadow.items():
        tensor.copy_(state[f"ema.{name}"])
    for name, parameter in parameters.items():
        if f"exp_avg.{name}" in state:
            optimizer.state[parameter] = {
                "step": state[f"step.{name}"],
                "exp_avg": state[f"exp_avg.{name}"].reshape(parameter.shape),
                "exp_avg_sq": state[f"exp_avg_sq.{name}"].reshape(parameter.shape),
            }
    summary = json.loads((run.out / "state.json").read_text())
    return summary["step"], float(summary["seconds"]), summary["pictures"]
