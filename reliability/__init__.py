"""What a crash, a damaged file or a broken document does to loraqa: `python -m reliability`."""
