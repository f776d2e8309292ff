"""What others published on NAB and SKAB, and our first probes, measured with the judge that measures us.

NAB's published scores choose their threshold on the corpus they are scored on ("optimised"), and the best of them
read each file's whole range; "held" takes the threshold of one half of the files to the other, and VUS-PR is of such
halves. Ours is what a topology ships, chosen on the half at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PUBLISHED"]

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "nab": {
        "ARTime": {"optimised": "74.9", "held": "71.5", "VUS-PR": "0.15"},
        "Numenta HTM": {"optimised": "70.1", "held": "67.0", "VUS-PR": "0.28"},
        "CAD OSE": {"optimised": "69.9", "held": "62.1", "VUS-PR": "0.15"},
        "Skyline": {"optimised": "58.2", "held": "56.2"},
        "KNN-CAD": {"optimised": "58.0", "held": "56.4"},
        "random cut forest": {"optimised": "51.7", "held": "48.0"},
        "windowed Gaussian": {"optimised": "39.6", "held": "41.8"},
        "our first probe": {"optimised": "69.3", "held": "60-66", "VUS-PR": "0.36"},
    },
    "skab": {
        "Conv-AE": {"F1": "0.784", "FAR %": "13.6", "MAR %": "28.0"},
        "MSET": {"F1": "0.78", "FAR %": "39.7", "MAR %": "14.1"},
        "T2 + Q": {"F1": "0.76", "FAR %": "26.6", "MAR %": "24.9"},
        "LSTM-AE": {"F1": "0.74", "FAR %": "30.0", "MAR %": "25.9"},
        "always alarm": {"F1": "0.698", "FAR %": "100", "MAR %": "0"},
        "our first probe": {"F1": "0.819", "FAR %": "20.2", "MAR %": "18.6"},
    },
}
"""By corpus and who: figures as they were published, by the column of our table."""
FILES = {"nab": 58, "skab": 34}
"""Files that the published figures are of."""
