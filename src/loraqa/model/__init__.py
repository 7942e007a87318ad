"""The plain algorithm: a base model computes trees, and only their answers have a loss.

Read `attention`, `trees`, `rows`, `runner` and `session` in this order. Nothing here knows of the
accelerations in `loraqa.speed`.
"""
