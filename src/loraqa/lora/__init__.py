"""LoRA (Hu et al., 2021, arXiv:2106.09685): low-rank updates beside frozen weights.

- `settings`: what a run may choose (`LoraSettings`; imports no torch)
- `layer`: the layer itself, with its own backward (`LoraLinear`)
- `targets`: which linear layers of a model, or which rows of one
- `adapt`: put the layers into a model, count its parameters
- `adapter`: adapter files in PEFT's format
- `merge`: fold the update into the weights, and take it out again
- `spectra`: what the adapter learned

The theory is in `docs/lora.md`. Nothing here knows of questions.
"""
