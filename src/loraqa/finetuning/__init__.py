"""The recipe of fine-tuning, from settings to an adapter.

settings = load_settings([Path("squad.yaml")], ["data.dev=dev.json"])
result = finetune(settings, Path("runs/squad"))
Reader.load("runs/squad").answer(context, questions)
"""

from loraqa.finetuning.recipe import FinetuneResult, finetune

__all__ = ["FinetuneResult", "finetune"]
