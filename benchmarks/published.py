"""What others published on NAB and SKAB, and our first probes, measured with the judge that measures us.

NAB's published scores choose their threshold on the corpus they are scored on ("optimised"), and the best of them
read each file's whole range; "held" takes the threshold of one half of the files to the other. Ours is what a
topology ships, chosen on the half at hand.
"""

from __future__ import annotations

__all__ = ["PUBLISHED"]

PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "nab": (
        ("58 files", "standard, optimised", "standard, held", "VUS-PR, held"),
        (
            ("ARTime", "74.9", "71.5", ".15"),
            ("Numenta HTM", "70.1", "67.0", ".28"),
            ("CAD OSE", "69.9", "62.1", ".15"),
            ("Skyline", "58.2", "56.2", ""),
            ("KNN-CAD", "58.0", "56.4", ""),
            ("random cut forest", "51.7", "48.0", ""),
            ("windowed Gaussian", "39.6", "41.8", ""),
            ("our first probe", "69.3", "60-66", ".36"),
        ),
    ),
    "skab": (
        ("34 files", "F1", "FAR %", "MAR %"),
        (
            ("Conv-AE", ".784", "13.6", "28.0"),
            ("MSET", ".78", "39.7", "14.1"),
            ("T2 + Q", ".76", "26.6", "24.9"),
            ("LSTM-AE", ".74", "30.0", "25.9"),
            ("always alarm", ".698", "100", "0"),
            ("our first probe", ".819", "20.2", "18.6"),
        ),
    ),
}
