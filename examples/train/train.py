"""Train the small Voxtral on a processor: `torchrun --standalone --nproc-per-node 2 train.py --corpus DIR`.

One cosine of the learning rate over the minutes given, and three stretches on the way: one delay (480 ms) at
first; then delays of 160 to 1200 ms; at the end weights rounded to Q4_0 in half of the batches. Muon moves
the matrices, Adam the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from corpus import Utterance, load_corpora, read_manifest, split
from data import FIRST_WORD, Crops, load_noises
from measure import word_error_rate
from model import SAMPLE_RATE, Shape, Voxtral
from rounding import BLOCK, restore, swap_rounded
from together import average_gradients, made_once, rank, share, world
from torch import distributed
from torch.nn import functional as F
from torch.utils.data import DataLoader
from voices import synthesise

PEAK_RATE, WARM_UP, WEIGHT_DECAY = 2e-3, 100, 0.05
WIDEN = 0.5, 0.65  # share of training at which delays begin to spread, and have spread
ROUND_FROM = 0.8  # share of training from which half of the batches run on Q4_0 weights
PHONE_WEIGHT = 0.4, 0.1  # of the auxiliary loss, at the start and at the end
EMA = 0.998
DEV_FOLDERS = "an4-dev", "barista-dev"


@dataclass(slots=True)
class Run:
    """What a checkpoint holds. The momentum of Muon is not kept: it is back after twenty steps."""

    model: Voxtral
    average: dict[str, torch.Tensor]
    adam: torch.optim.Optimizer
    muon: torch.optim.Optimizer
    words: list[str]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        state = {
            "shape": asdict(self.model.shape),
            "model": self.model.state_dict(),
            "average": self.average,
            "adam": self.adam.state_dict(),
            "words": self.words,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @classmethod
    def start(cls, words: list[str], shape: Shape) -> Run:
        model = Voxtral(shape)
        hidden = hidden_matrices(model)
        others = [p for p in model.parameters() if not any(p is h for h in hidden)]
        adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        muon = torch.optim.Muon(
            hidden[rank() :: world()], weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        return cls(model, {k: v.clone() for k, v in model.state_dict().items()}, adam, muon, words)

    @classmethod
    def resume(cls, path: Path) -> Run:
        state = torch.load(path, weights_only=True)
        run = cls.start(state["words"], Shape(**state["shape"]))
        run.model.load_state_dict(state["model"])
        run.adam.load_state_dict(state["adam"])
        run.average, run.step, run.seconds = state["average"], state["step"], state["seconds"]
        return run


def hidden_matrices(model: Voxtral) -> list[torch.nn.Parameter]:
    """What Muon trains: the linear weights between embeddings and heads."""
    return [
        p
        for name, p in model.named_parameters()
        if p.dim() == 2 and not name.startswith("phone_head") and "tok_embeddings" not in name
    ]


def train(run: Run, crops: Crops, dev: list[Utterance], args: argparse.Namespace) -> None:
    """Steps until the minutes are over; a checkpoint and the word error rates every few minutes."""
    loader = iter(
        DataLoader(
            crops, batch_size=None, num_workers=args.loaders, prefetch_factor=4 if args.loaders else None
        )
    )
    total, begun, losses = args.minutes * 60, time.monotonic() - run.seconds, []
    next_report = run.seconds + args.report * 60
    while run.seconds < total:
        done = run.seconds / total
        crops.progress[0] = done
        run.seconds = time.monotonic() - begun
        losses.append(step(run, next(loader), done))
        run.step += 1
        if run.step % 20 == 0:
            loss, phone = (round(sum(column) / len(losses), 3) for column in zip(*losses, strict=True))
            say(args.work, step=run.step, minutes=round(run.seconds / 60, 1), loss=loss, phone=phone)
            losses.clear()
        if run.seconds > next_report:
            next_report += args.report * 60
            keep_and_report(run, dev, args)
    keep_and_report(run, dev, args)


def step(run: Run, batch: Iterable[torch.Tensor], done: float) -> tuple[float, float]:
    """One update of the weights and of their average; the two losses."""
    mel, tokens, targets, weights, phones, delay = batch
    model = run.model.train()
    for group in run.adam.param_groups + run.muon.param_groups:
        group["lr"] = learning_rate(run.step, done)
    kept = swap_rounded(model) if done > ROUND_FROM and run.step % 2 == 0 else {}
    with torch.autocast("cpu", torch.bfloat16):
        logits, phone_logits = model(mel, tokens, delay)
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", label_smoothing=0.02)
    loss = (losses * weights).sum() / weights.sum()
    phone_loss = F.cross_entropy(phone_logits.float().flatten(0, 1), phones.flatten(), ignore_index=-100)
    model.zero_grad(set_to_none=True)
    (loss + (PHONE_WEIGHT[0] + done * (PHONE_WEIGHT[1] - PHONE_WEIGHT[0])) * phone_loss).backward()
    restore(model, kept)
    run.seconds = average_gradients(model, run.seconds)
    torch.nn.utils.clip_grad_norm_(run.adam.param_groups[0]["params"], 1.0)  # Muon has no use for lengths
    run.adam.step()
    run.muon.step()
    share(hidden_matrices(model))
    if rank() == 0:
        keep = min(EMA, (1 + run.step) / (10 + run.step))
        state = model.state_dict()
        torch._foreach_lerp_(list(run.average.values()), [state[k] for k in run.average], 1 - keep)
    return loss.item(), phone_loss.item()


def learning_rate(step: int, done: float) -> float:
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def keep_and_report(run: Run, dev: list[Utterance], args: argparse.Namespace) -> None:
    """Checkpoint, then the error rates of the averaged weights, exact and, once it matters, rounded."""
    if rank():
        return
    run.save(args.work / "latest.pt")
    model = Voxtral(run.model.shape).eval()
    model.load_state_dict(run.average)
    say(args.work, step=run.step, **error_rates(model, run.words, dev))
    if run.seconds > ROUND_FROM * args.minutes * 60:
        swap_rounded(model)
        say(
            args.work,
            step=run.step,
            **{f"{k} q4_0": v for k, v in error_rates(model, run.words, dev).items()},
        )


def error_rates(model: Voxtral, words: list[str], dev: list[Utterance]) -> dict[str, float]:
    return {
        folder: round(word_error_rate(model, words, [u for u in dev if u.corpus == folder]), 2)
        for folder in sorted({u.corpus for u in dev})
    }


def say(work: Path, **values) -> None:
    if rank():
        return
    line = json.dumps(values)
    print(line, flush=True)
    with (work / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="folder with an4/, barista/, wakewords/ and noise/")
    parser.add_argument(
        "--dev", type=Path, help="folder with transcripts.tsv: speakers to measure on while training"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work"), help="checkpoints, log (default: work)"
    )
    parser.add_argument("--minutes", type=float, default=90, help="of the whole run (default: 90)")
    parser.add_argument("--report", type=float, default=10, help="minutes between checkpoints (default: 10)")
    parser.add_argument("--batch", type=int, default=8, help="crops in each process (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument(
        "--loaders", type=int, default=1, help="processes that make crops for each (default: 1)"
    )
    parser.add_argument(
        "--voices", type=int, default=240, help="synthetic sentences; 0 for none (default: 240)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from latest.pt in --work")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model on made-up sounds")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if "RANK" in os.environ:  # set by torchrun
        distributed.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.smoke:
        from smoke import smoke

        with tempfile.TemporaryDirectory() as folder:
            smoke(Path(folder), args)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    everyone = made_once(lambda: load_corpora(args.corpus, args.work / "aligned.pkl"))
    training, _ = split(everyone)
    words = sorted({word for u in everyone for word in u.text.split()})
    dev = [u for u in read_manifest(args.dev) if u.corpus in DEV_FOLDERS] if args.dev else []
    vocab = -(-(FIRST_WORD + len(words)) // BLOCK) * BLOCK
    run = Run.resume(args.work / "latest.pt") if args.resume else Run.start(words, Shape(vocab=vocab))
    spoken = made_once(lambda: synthesise(training, args.voices, args.work / "voices.pkl"))
    say(
        args.work,
        parameters=sum(p.numel() for p in run.model.parameters()),
        words=len(words),
        training=len(training),
        minutes=round(sum(len(u.pcm) for u in training) / SAMPLE_RATE / 60, 1),
        voices=len(spoken),
    )
    crops = Crops(
        training,
        spoken,
        load_noises(args.corpus),
        words,
        batch=args.batch,
        progress=torch.zeros(1).share_memory_(),
        widen=WIDEN,
        seed=1 + run.step + 100 * rank(),
    )
    train(run, crops, dev, args)


if __name__ == "__main__":
    main()
