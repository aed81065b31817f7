"""Trains the demo model from nothing: corpus -> tokenizer -> packed rows -> weights folder.

    python -m engines.demo_model.train            10 to 35 minutes on two CPU cores
    python -m engines.demo_model.train --steps 0  the folder with random weights, for trying things out

Every seed is fixed. The matrices are trained by Muon, which at this size is far ahead of AdamW at equal
steps; embeddings and norms by AdamW. Weights are int4 in the forward pass from the first step (fake_quant).
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Threads that wait for each other shall sleep, not spin: on a busy machine spinning triples the time of a step.
# OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from engines.demo_model import WEIGHTS
from engines.demo_model.architecture import SHAPE, hidden_states, initial_parameters
from engines.demo_model.corpus import training_conversations
from engines.demo_model.fake_quant import quantised, snapped
from engines.demo_model.packing import Rows, encode_conversation, pack
from engines.demo_model.vocabulary import END, END_OF_TEXT, save_tokenizer, train_tokenizer

SEED = 2024
STEPS = 1600
TOKENS_PER_STEP = 4096
MUON_RATE, ADAM_RATE = 0.008, 0.004
WARM_UP_STEPS = 30


def batches(rows: dict[int, Rows], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (tokens, weights, documents), each step from rows of one length; lengths come in proportion."""
    chooser = random.Random(seed)
    lengths = [length for length in rows if len(rows[length].tokens)]
    sizes = [rows[length].tokens.size for length in lengths]
    streams = {length: _row_stream(rows[length], TOKENS_PER_STEP // length, seed) for length in lengths}
    while True:
        yield next(streams[chooser.choices(lengths, sizes)[0]])


def _row_stream(rows: Rows, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    arrays = [
        torch.from_numpy(a)
        for a in (rows.tokens.astype("int64"), rows.weights, rows.documents.astype("int32"))
    ]
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < count:
            queue = torch.cat((queue, torch.randperm(len(arrays[0]), generator=generator)))
        picked, queue = queue[:count], queue[count:]
        yield tuple(a[picked] for a in arrays)


def weighted_loss(
    parameters: dict[str, Tensor], tokens: Tensor, weights: Tensor, documents: Tensor, shape: dict
) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over the tokens' weights."""
    weights_used = quantised(parameters)
    hidden = hidden_states(weights_used, tokens, documents, shape)[:, :-1]
    predicted = F.linear(hidden, weights_used["model.embed_tokens.weight"]).float()
    targets = tokens[:, 1:].reshape(-1)
    losses = F.cross_entropy(predicted.reshape(len(targets), -1), targets, reduction="none")
    share = weights[:, 1:].reshape(-1)
    return (losses * share).sum() / share.sum()


def rate_factor(step: int, steps: int) -> float:
    """Learning-rate factor: linear warm-up, then cosine to zero."""
    warm_up = min(WARM_UP_STEPS, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def optimizers(parameters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in parameters.items() if p.dim() == 2 and "embed" not in name]
    rest = [p for name, p in parameters.items() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(
    rows: dict[int, Rows],
    shape: dict,
    steps: int,
    *,
    compiled: bool = True,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Parameters after ``steps`` steps; ``stop_after`` ends early (for a look at the loss)."""
    torch.manual_seed(SEED)
    parameters = {n: p.requires_grad_() for n, p in initial_parameters(shape, SEED).items()}
    chosen = optimizers(parameters)
    peaks = [group["lr"] for optimizer in chosen for group in optimizer.param_groups]
    loss_of = torch.compile(weighted_loss, dynamic=False) if compiled else weighted_loss
    started, recent = time.monotonic(), []
    for step, (tokens, weights, documents) in zip(range(steps), batches(rows, SEED), strict=False):
        if step == stop_after:
            break
        for optimizer, peak in zip(chosen, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate_factor(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(parameters, tokens, weights, documents, shape)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 25 == 0 or step + 1 == steps:
            mean, recent = sum(recent) / len(recent), []
            report(f"step {step + 1}/{steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s")
        if checkpoint and (step + 1) % 250 == 0:
            torch.save(parameters, checkpoint)
    return parameters


def model_config(shape: dict, end: int, end_of_text: int) -> dict:
    """config.json of a Phi3ForCausalLM; the rotary base is spelled for transformers 4 and 5 alike."""
    return shape | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "partial_rotary_factor": 1.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end_of_text,
    }


def export(parameters: dict[str, Tensor], tokenizer, shape: dict, folder: Path) -> None:
    """Write the complete model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    end, end_of_text = tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)
    config = model_config(shape, end, end_of_text)
    generation = {
        "do_sample": False,
        "eos_token_id": [end, end_of_text],
        "pad_token_id": end_of_text,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, shape["max_position_embeddings"])
    save_file(snapped(parameters), folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stop-after", type=int, help="end early, for a look at the loss")
    parser.add_argument("--checkpoint", type=Path, help="keep the float32 parameters here, every 250 steps")
    args = parser.parse_args()

    torch.set_num_threads(2)
    started = time.monotonic()
    conversations = list(training_conversations(SEED))
    texts = (m.content for c in conversations for m in c)
    tokenizer = train_tokenizer(texts, int(SHAPE["vocab_size"]))
    documents = [encode_conversation(tokenizer, c) for c in conversations]
    rows = pack(documents, SEED)
    tokens = sum(len(ids) for ids, _ in documents)
    print(f"{len(conversations)} conversations, {tokens} tokens, {time.monotonic() - started:.0f} s")
    parameters = train(rows, SHAPE, args.steps, checkpoint=args.checkpoint, stop_after=args.stop_after)
    tokenizer.encode_special_tokens = False
    export(parameters, tokenizer, SHAPE, args.out)
    print(f"written to {args.out} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
