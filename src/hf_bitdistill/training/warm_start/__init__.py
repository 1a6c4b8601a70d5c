"""Start values of a ternary student from little text: closed form a layer, or block by block against the teacher."""

from .config import WarmStartConfig
from .residents import fit_whole
from .start import layers_on, least_squares_warm_start, warm_start
from .window_report import WarmStartReport, WindowReport


__all__ = [
    "WarmStartConfig",
    "WarmStartReport",
    "WindowReport",
    "fit_whole",
    "layers_on",
    "least_squares_warm_start",
    "warm_start",
]
