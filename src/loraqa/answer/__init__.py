"""Answering: how tokens are chosen, and the reader that answers questions about a text.

- `filters`: functions on logits (temperature, top-k, top-p, min-p, typical)
- `decode`: answers written token by token, for a whole batch (`Greedy`, `Sampling`)
- `beam`: beam search (`BeamSearch`)
- `span`: the most probable span of the context, exactly (`SpanSearch`)
- `strategies`: from a name such as `top-p:0.9` to a strategy
- `locate`: where in the context an answer stands
- `load`: load a run, an adapter or a model
- `reader`: `Reader.load(run).answer(context, questions)`
- `progress`: the callback that reports how many prompts are answered
- `evaluate`: answer a data set and score it
- `compare`: strategies side by side, quality and diversity

The formulas, and when to choose which, are in `docs/decoding.md`.
"""
