"""What an adapter folder says: enough to answer with the adapter, and a model card for people.

    adapter/
        adapter_config.json, adapter_model.safetensors   PEFT's files (`loraqa.lora.adapter`)
        loraqa.json                                      `AdapterInfo`: base, prompt, data version
        README.md                                        the model card

- `info`: `AdapterInfo`, read from and written to `loraqa.json`
- `base`: which base model an adapter belongs to, with the SHA-256 of its weights
- `evaluation`: the scores of an adapter at a step (`Evaluation`)
- `card`: the model cards of an adapter and of a merged model
- `find`: where the adapter of a run lies (imports no torch)
"""
