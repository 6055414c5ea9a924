"""What do people look at? Figures, report.html, progress, and the numbers a run leaves behind.

    from cnn_jax.reporting import Progress, Tracker, plots, report

Takes plain data (NumPy arrays, dicts, text) and knows nothing of the rest of the package. matplotlib and rich are
imported when something is drawn or printed.
"""

from . import plots, progress, report, trackers
from .log import log_run
from .progress import Progress, print_table
from .report import write_report
from .trackers import Tracker, read_metrics, write_json

__all__ = [
    "Progress",
    "Tracker",
    "log_run",
    "plots",
    "print_table",
    "progress",
    "read_metrics",
    "report",
    "trackers",
    "write_json",
    "write_report",
]
