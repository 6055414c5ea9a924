"""How far two libraries' numbers are apart."""

import jax
import numpy as np

from cnn_jax.reporting import print_table


def compared(ours, theirs, relative: float) -> dict[str, float]:
    """The largest difference between arrays or trees of them; infinite where they differ in shape."""
    ours, theirs = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (ours, theirs))
    same = [x.shape for x in ours] == [x.shape for x in theirs]
    worst = max(np.abs(a - b).max(initial=0) for a, b in zip(ours, theirs, strict=True)) if same else np.inf
    scale = max(np.abs(x).max(initial=0) for x in theirs)
    return {"difference": worst, "scale": scale, "bound": relative * scale}


def told(title: str, found: dict[tuple[str, str], dict]) -> dict:
    """Prints a table of (network, what) -> numbers; the same by one name each."""
    rows = [[*of, *map("{:.2g}".format, numbers.values())] for of, numbers in found.items()]
    print_table(title, ["network", "what", "largest difference", "largest value", "bound"], rows)
    return {"_".join(of).replace(" ", "_"): numbers for of, numbers in found.items()}
