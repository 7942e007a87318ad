"""The field's standard trainer, transformers' `Trainer` with PEFT, in the same kills and damages.

It trains as many steps on the same data, saves as often, and goes on with
`resume_from_checkpoint=True`; where it finds no checkpoint, it starts again.
"""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

from reliability.crash import some, states
from reliability.damages import damages
from reliability.forks import Ended, run
from reliability.trials import dying, new_place, stopped, unreadable
from reliability.works import Work, write_inputs

_NOTHING = "No valid checkpoint found in output directory"


def study(folder: Path, kills: int, crashes: int, count: int, seed: int) -> dict[str, Counter[str]]:
    """Kill the trainer, and damage its newest checkpoint; count how it ends.

    Args:
        kills: kills at seeded instants.
        crashes: states before a call, of each kind of crash.
        count: damages of files of the newest checkpoint.
        seed: decides about all of them.
    """
    inputs = folder / "inputs"
    run(partial(write_inputs, inputs), folder)
    resume = partial(_train, inputs, resume=True)
    work = Work("trainer", partial(_train, inputs), resume, {}, _NOTHING)
    with new_place(folder, {}) as place:
        ended = run(work.begin, place)
        wanted = _adapter(place)
        if ended.status != 0 or wanted is None:
            raise SystemExit(f"The trainer fails, undisturbed:\n{ended.said}")
    chance = random.Random(seed)
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(kills):
        with new_place(folder, {}) as place:
            run(work.begin, place, kill_after=ended.seconds * (number + chance.random()) / kills)
            ends["killed"][_outcome(work.finish(place), place, wanted)] += 1
    crashed = some(states(work, folder)[0], crashes, chance)
    for state in crashed:
        with new_place(folder, state.tree) as place:
            ends[state.kind][_outcome(work.finish(place), place, wanted)] += 1
    start = stopped(work, folder, dying(lambda call: call.path.endswith("checkpoint-8")))
    newest = [n for n, c in start.items() if c is not None and n.startswith("run/checkpoint-6/")]
    halted = replace(work, start=start)
    for damage in damages([("trainer", halted, newest)], count, seed):
        with new_place(folder, start) as place:
            path = place / damage.path
            damage.apply(path)
            answer = unreadable(path, damage.error) if damage.error else None
            ends["damaged"][_outcome(halted.finish(place, answer), place, wanted)] += 1
    return ends


def _outcome(ended: Ended, place: Path, wanted: bytes) -> str:
    if ended.status != 0:
        return "crashed"
    return "same bits" if _adapter(place) == wanted else "silently different"


def _adapter(place: Path) -> bytes | None:
    path = place / "run" / "adapter" / "adapter_model.safetensors"
    return path.read_bytes() if path.exists() else None


def _train(inputs: Path, *, resume: bool = False) -> None:
    """Train in the working directory, as transformers' and PEFT's documentation show."""
    import peft
    import transformers

    from loraqa.squad import read_passages

    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs / "gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(inputs / "gpt2"),
        peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM"),
    )
    texts = [
        f"Context: {passage.context} Question: {q.text} Answer: {q.answers[0].text}"
        for passage in read_passages(inputs / "train.json").passages
        for q in passage.questions
    ]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            "run",
            num_train_epochs=2,
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            save_steps=2,
            save_total_limit=2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=[tokenizer(text) for text in texts],
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model("run/adapter")
