"""Train the embedded base model: a tokenizer, then a small GPT-2 as a plain language model.

    python -m loraqa.demo.pretrain --out DIR [--tokens N] [--seed 0] [--resume]

Sequences are packed with documents; the last document of a sequence is truncated. Muon
(orthogonalised momentum, Jordan et al. 2024) trains the matrices, AdamW the embeddings and norms;
the learning rate warms up, stays, and falls to zero over the last 40%. Short documents come first,
because attention learns to look back sooner in them. The work is shared by one single-threaded
process per core: synchronizing once per step suffers less from other jobs than synchronizing in
every operation. The model is saved to DIR in fp16 at every probe and at the end; `--resume`
continues from it with new momenta and the same data.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from loraqa.demo import corpus
from loraqa.demo.paragraph import draw_paragraph

EOS = "<|endoftext|>"
POSITIONS = 512
VOCABULARY = 2304
WIDTH = 192
NEWS = 0.1
"""Loss weight of tokens that do not repeat earlier text; repeating tokens have weight 1."""
HEAD_WIDTH = 32


@dataclass(frozen=True)
class Plan:
    """The length of the training and its learning rates."""

    tokens: int
    batch_tokens: int = 6144
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warm_up: float = 0.01
    decay: float = 0.4

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        return self.tokens // self.batch_tokens

    def rate(self, progress: float) -> float:
        """Return the fraction of the peak learning rate at `progress` in [0, 1]."""
        return min(1.0, progress / self.warm_up, (1 - progress) / self.decay)


def draw_document(rng: random.Random, progress: float) -> corpus.Document:
    """Draw a document; later in training, documents are longer and fewer of them are lists."""
    if rng.random() < max(0.02, 1 - 12 * progress):
        return corpus.repeated_paragraph(rng, "train", rng.randint(2, 3), rng.randint(2, 3))
    if rng.random() < 0.9 - 0.8 * progress:
        things = rng.randint(2, 3 + round(3 * progress))
        return corpus.repeated_list(rng, "train", things, rng.randint(3, 4))
    if rng.random() < progress - 0.2:
        return corpus.paragraph_with_echoes(rng, "train", rng.randint(3, 5), rng.randint(2, 3), 1)
    return corpus.paragraph_with_echoes(rng, "train", rng.randint(2, 4), 1, rng.randint(2, 3))


def train_tokenizer(seed: int, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like GPT-2's on the corpus."""
    rng = random.Random(f"tokenizer {seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (draw_document(rng, 0.5).text for _ in range(documents)),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(seed: int) -> GPT2LMHeadModel:
    """Return the initial model. Its GELU is GPT-2's, computed by PyTorch's fused kernel."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=5,
        n_head=WIDTH // HEAD_WIDTH,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    initialize_induction_heads(model)
    return model


# Initial attention of the first layer's heads, as (tokens back, spread).
_NEAR = ((1, 0.0), (2, 0.0), (3, 0.0))
_FAR = ((4, 1.0), (7, 1.5), (11, 2.5))


@torch.no_grad()
def initialize_induction_heads(model: GPT2LMHeadModel) -> None:
    """Initialize the first two layers close to what language models learn there first.

    Position embeddings start as sinusoids. In the first layer, three heads attend to the tokens 1,
    2 and 3 back. The other three attend to the tokens around 4, 7 and 11 back and write them to one
    subspace, the recent words. In the second layer, three heads are induction heads: they attend to
    tokens where a near head wrote the current token. The other three attend to tokens with similar
    recent words. All six copy the tokens they attend to (Olsson et al. 2022; the idea of such an
    initialization is from Trockman and Kolter 2023). All weights are trained from the first step.
    """
    frequencies = 2.5 * 200 ** (-torch.arange(HEAD_WIDTH // 2) / HEAD_WIDTH)
    angles = torch.arange(POSITIONS)[:, None] * frequencies
    positions = model.transformer.wpe.weight
    positions.zero_()
    positions[:, :HEAD_WIDTH] = 0.05 * torch.cat([angles.sin(), angles.cos()], 1)
    first, second = (block.attn for block in model.transformer.h[:2])
    first.c_proj.weight.mul_(2)
    heads = [slice(i * HEAD_WIDTH, (i + 1) * HEAD_WIDTH) for i in range(WIDTH // HEAD_WIDTH)]
    query, key, value = first.c_attn.weight.split(WIDTH, dim=1)
    for head, (back, spread) in zip(heads, (*_NEAR, *_FAR), strict=True):
        kernel = 1.3 * torch.exp(-((frequencies * spread) ** 2) / 4).repeat(2)
        query[:, head], key[:, head] = 0, 0
        query[:HEAD_WIDTH, head] = rotation(-back * frequencies) * kernel
        key[:HEAD_WIDTH, head] = torch.diag(kernel)
    for head in heads[len(_NEAR) + 1 :]:
        value[:, head] = value[:, heads[len(_NEAR)]]
        first.c_proj.weight[head] = first.c_proj.weight[heads[len(_NEAR)]]
    written = [value[:, head] @ first.c_proj.weight[head] for head in heads]
    query, key, value = second.c_attn.weight.split(WIDTH, dim=1)
    for index, head in enumerate(heads):
        mapped = written[index] / written[index].norm() * math.sqrt(HEAD_WIDTH)
        if index < len(_NEAR):
            key[:, head] = 4 * torch.linalg.qr(mapped.T @ torch.randn(WIDTH, HEAD_WIDTH))[0]
            query[:, head] = mapped @ key[:, head]
        else:
            key[:, head] = torch.linalg.qr(mapped.T @ torch.randn(WIDTH, HEAD_WIDTH))[0]
            key[:, head] *= 0.3 * (index - 1)
            query[:, head] = key[:, head]
        value[:, head] = torch.linalg.qr(torch.randn(WIDTH, HEAD_WIDTH))[0]
        second.c_proj.weight[head] = 0.5 * value[:, head].T


def rotation(angles: torch.Tensor) -> torch.Tensor:
    """Return the matrix (2n, 2n) that rotates rows (sin, cos) of n angles by `angles` (n,)."""
    sin, cos = angles.sin().diag(), angles.cos().diag()
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def draw_sequence(
    rng: random.Random, tokenizer: Tokenizer, length: int, progress: float
) -> tuple[list[int], list[float]]:
    """Return `length` token ids of packed documents and their loss weights."""
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        document = draw_document(rng, progress)
        encoding = tokenizer.encode(document.text)
        ids += [*encoding.ids, 0]
        weights += [1.0 if document.again[end - 1] else NEWS for _, end in encoding.offsets] + [
            NEWS
        ]
    return ids[:length], weights[:length]


def batches(
    seed: str, tokenizer: Tokenizer, plan: Plan, first_step: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield step number, input ids and loss weights (sequences, length).

    In the first tenth of the training, sequences have half the length.
    """
    for step in range(first_step, plan.steps):
        rng = random.Random(f"{seed} {step}")
        progress = step / plan.steps
        length = POSITIONS // 2 if progress < 0.1 else POSITIONS
        count = plan.batch_tokens // dist.get_world_size() // length
        sequences = [draw_sequence(rng, tokenizer, length, progress) for _ in range(count)]
        ids, weights = zip(*sequences, strict=True)
        yield step, torch.tensor(ids), torch.tensor(weights)


def optimizers(model: GPT2LMHeadModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for all other parameters."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def language_loss(
    model: GPT2LMHeadModel, input_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted mean of the next-token cross-entropy, with matrix products in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=input_ids, use_cache=False).logits
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="none"
    )
    shares = weights[:, 1:].flatten()
    return losses @ shares / shares.sum()


@dataclass(frozen=True)
class Probe:
    """A paragraph, a question about it, and a reply; the last `fact_tokens` ids are the fact."""

    ids: list[int]
    fact_tokens: int


def draw_probes(tokenizer: Tokenizer, count: int, echo: bool) -> list[Probe]:
    """Draw probes with names not in the corpus; with `echo`, the replies repeat the subject."""
    rng = random.Random("probe")
    probes: list[Probe] = []
    while len(probes) < count:
        paragraph = draw_paragraph(rng, "test", rng.randint(3, 4), 2)
        fact, _ = rng.choice(list(paragraph.facts.values()))
        opening, *_ = corpus.reply(rng, fact).partition(" " + fact.value)
        subject = corpus.echo_subject(rng, fact) if echo else ""
        question = f"Two friends spoke about it.\n{corpus.ask(rng, fact)} {subject}{opening}"
        value = tokenizer.encode(" " + fact.value).ids
        ids = tokenizer.encode(f"{paragraph.text}\n{question}").ids
        probes.append(Probe(ids + value, len(value)))
    return probes


@torch.inference_mode()
def recall(model: GPT2LMHeadModel, probes: list[Probe]) -> tuple[float, float]:
    """Return the fractions of facts whose first token, and whose every token, is predicted."""
    firsts = wholes = 0
    for probe in probes:
        ids = torch.tensor([probe.ids])
        with torch.autocast("cpu", torch.bfloat16):
            guesses = model(input_ids=ids, use_cache=False).logits[0].argmax(-1)
        right = guesses[-probe.fact_tokens - 1 : -1] == ids[0, -probe.fact_tokens :]
        firsts += int(right[0])
        wholes += int(right.all())
    return firsts / len(probes), wholes / len(probes)


def save(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path, step: int
) -> None:
    """Save the fp16 model, the tokenizer, and the number of the next step."""
    half = GPT2LMHeadModel(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "progress.json").write_text(json.dumps({"step": step}))


def average_gradients(model: GPT2LMHeadModel) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train(plan: Plan, folder: Path, seed: int, resume: bool, probe_every: int) -> None:
    """Pretrain in this process, one of the group; the process of rank 0 reports and saves."""
    tokenizer = AutoTokenizer.from_pretrained(folder) if resume else train_tokenizer(seed)
    fast = tokenizer.backend_tokenizer
    model = new_model(seed)
    first_step = 0
    if resume:
        model.load_state_dict(GPT2LMHeadModel.from_pretrained(folder).float().state_dict())
        first_step = json.loads((folder / "progress.json").read_text())["step"]
    leads = dist.get_rank() == 0
    probes = {echo: draw_probes(fast, 200, echo) for echo in (False, True)}
    started, losses = time.monotonic(), []
    steppers = optimizers(model, plan)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    for step, input_ids, weights in batches(f"{seed} {dist.get_rank()}", fast, plan, first_step):
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * plan.rate((step + 1) / (plan.steps + 1))
        loss = language_loss(model, input_ids, weights)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        losses.append(loss.item())
        if leads and len(losses) == 50:
            speed = (step + 1 - first_step) * plan.batch_tokens / (time.monotonic() - started)
            left = (plan.steps - step) * plan.batch_tokens / speed / 60
            print(
                f"step {step + 1}/{plan.steps} tokens {(step + 1) * plan.batch_tokens:,} "
                f"loss {sum(losses) / 50:.3f} {speed:,.0f} tokens/s, {left:.1f} minutes left",
                flush=True,
            )
            losses.clear()
        if leads and ((step + 1) % probe_every == 0 or step + 1 == plan.steps):
            for echo, asked in probes.items():
                first, whole = recall(model, asked)
                print(f"recall ({echo=}): first token {first:.1%}, whole {whole:.1%}", flush=True)
            save(model, tokenizer, folder, step + 1)


def work(
    rank: int,
    workers: int,
    meeting_point: str,
    plan: Plan,
    folder: Path,
    seed: int,
    resume: bool,
    probe_every: int,
) -> None:
    """Run one process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=workers
    )
    train(plan, folder, seed, resume, probe_every)
    dist.destroy_process_group()


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=14_500_000)
    parser.add_argument("--batch-tokens", type=int, default=Plan.batch_tokens)
    parser.add_argument("--muon-lr", type=float, default=Plan.muon_lr)
    parser.add_argument("--adam-lr", type=float, default=Plan.adam_lr)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe-every", type=int, default=200)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    plan = Plan(options.tokens, options.batch_tokens, options.muon_lr, options.adam_lr)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.workers, f"{folder}/meeting", plan, options.out, options.seed)
        start_processes(
            work, (*arguments, options.resume, options.probe_every), nprocs=options.workers
        )


if __name__ == "__main__":
    main()
