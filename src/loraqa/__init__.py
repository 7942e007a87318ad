"""loraqa: teach a language model to answer questions about your own texts.

Rooms, lowest floor first (each imports only from those above it): `squad`, `lora`, `prompt`,
`model`, `train`, `answer`, `report`, `serve`, `demo`. `finetune`, `ahead` and `cli` tie them
together.
"""

__version__ = "0.1.0"
