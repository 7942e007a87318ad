"""Training an adapter: settings, loop, checkpoints, and the folder of a run.

- `settings`: what a run may choose (`RunSettings`, `load_settings`; imports no torch)
- `data`: the training data, read and encoded (imports no torch)
- `schedule`: how many steps, and the learning rate of each
- `loss`: the exact loss of a step made of several micro-batches
- `loop`: `train`, one optimizer step after another
- `checkpoint`: whole snapshots of the training, to go on from with the same bits
- `run`: the folder of a run, and its metrics (imports no torch)
- `environment`: where and with what a run is made
- `stopping`: Ctrl-C and SIGTERM
- `progress`: what the user sees meanwhile
"""
