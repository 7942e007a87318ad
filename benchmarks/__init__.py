"""loraqa and its peers (transformers, PEFT, TRL) compared: `python -m benchmarks` or `make bench`.

Two more programs: `python -m benchmarks.profile` shows where a training step spends its time, and
`python -m benchmarks.quality` whether speed costs answer quality.
"""
