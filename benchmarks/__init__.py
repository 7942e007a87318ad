"""Us and our peers side by side: `python -m benchmarks`, or `make bench`.

__main__   arguments in, table out
suites     who runs against whom, how often, and what the targets are
harness    jobs in fresh processes, one after another; progress; the files of results
worker     what such a process runs: one job
text       the passages, drawn with a fixed seed
base       the models and the adapters that all share
clock      time, memory, tokens and the first gradient of whatever trains
ours       loraqa: training, answering, the overhead of its loop
peers      transformers, PEFT and TRL
commands   `loraqa train` and `loraqa score` as whole processes
machine    the rate of matrix products
flops      what a step needs by the formula
report     tables and plots
"""
