"""`loraqa inspect`."""

from typing import Annotated

import typer

from loraqa.cli.options import Data, OnBad, Prompts
from loraqa.cli.output import importing_pytorch, new_console
from loraqa.prompt.defaults import DEFAULT_STRIDE


def inspect(
    model: Annotated[
        str, typer.Option(help="Base model: a folder, a GGUF file, or a name on the hub.")
    ],
    data: Data,
    examples: Annotated[int, typer.Option("-n", help="Number of contexts to show.", min=0)] = 3,
    template: Prompts = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer in tokens; default: the model's limit.", min=1
        ),
    ] = None,
    stride: Annotated[
        int, typer.Option(help="Tokens that two windows share.", min=0)
    ] = DEFAULT_STRIDE,
    on_bad: OnBad = "stop",
) -> None:
    """Show tokens, mask and tree of some contexts; measure all."""
    from loraqa.model.source import ModelSource, choose_max_length, load_tokenizer, template_of
    from loraqa.prompt.encode import PromptEncoder
    from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
    from loraqa.squad import read_passages
    from loraqa.train.data import describe, without_answer

    ModelSource(model)
    dataset = read_passages(data, on_bad=on_bad).to_learn_from(on_bad)

    with importing_pytorch():
        from loraqa.report.inspection import inspection
        from loraqa.speed.start import accelerated_preparation

        tokenizer, config = load_tokenizer(model)
        prompt = Template(template_of(template or DEFAULT_TEMPLATE, model))

    tokenizer = accelerated_preparation().wrap_tokenizer(tokenizer)
    encoder = PromptEncoder(tokenizer, prompt, choose_max_length(max_length, config), stride)
    console = new_console()
    for piece in inspection(encoder.encode_training(dataset.passages), tokenizer, examples):
        console.print(piece)
    if told := without_answer(describe(dataset)):
        console.print(f'{told}; a run on them learns to say "no answer".', markup=False)
    if dataset.control_characters:
        console.print(f"Control characters in the contexts: {dataset.control_characters:,}.")
