"""Us and our peers side by side: `python -m benchmarks`, or `make bench`.

__main__   arguments in, table out
suites     who runs against whom, how often, and what the targets are
harness    jobs in fresh processes, one after another; progress; targets
worker     what such a process runs: one job
ablation   ours with one optimisation taken out
scaling    how time and memory grow
text       the passages, drawn with a fixed seed
base       the models and the adapters that all share
clock      time, memory, tokens and the first gradient of whatever trains
ours       loraqa: training, answering, the overhead of its loop
peers      transformers, PEFT and TRL
commands   `loraqa train` and `loraqa score` as whole processes
machine    what it is, and its rate of matrix products
flops      what a step needs by the formula
report     tables and plots

On their own: `python -m benchmarks.profile`, where a step spends its time, and `python -m
benchmarks.quality`, whether speed costs answers.
"""
