"""What an adapter learned, as a table and a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraqa.lora.spectra import Spectrum
from loraqa.report.plots import singular_values
from loraqa.report.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectra_table(spectra: Sequence[Spectrum]) -> Table:
    """One row for each update: its size beside its weight, and how many directions it uses."""
    columns = (
        Column("layer"),
        Column("rank"),
        Column("‖ΔW‖", ".3g"),
        Column("‖ΔW‖ / ‖W‖", ".2%"),
        Column("σ₁", ".3g"),
        Column("σ₁² of ‖ΔW‖²", ".0%"),
        Column("stable rank", ".1f"),
        Column("effective rank", ".1f"),
    )
    rows = tuple(
        (
            spectrum.name,
            spectrum.rank,
            spectrum.norm,
            spectrum.relative_norm,
            spectrum.singular_values[0],
            spectrum.top_share,
            spectrum.stable_rank,
            spectrum.effective_rank,
        )
        for spectrum in spectra
    )
    return Table("What LoRA learned", columns, rows)


def spectra_figure(spectra: Sequence[Spectrum]) -> "Figure":
    """The singular values of every update, a heat map for each kind of layer."""
    return singular_values({spectrum.name: spectrum.singular_values for spectrum in spectra})
