"""LoRA (Hu et al., 2021, arXiv:2106.09685): low-rank updates beside frozen weights.

This package knows nothing of questions. `docs/lora.md` explains the theory.
"""
