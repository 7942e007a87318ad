"""loraqa: teach a language model to answer questions about your own texts.

`docs/architecture.md` describes the packages, from the foundation up.
"""

__version__ = "0.1.0"
