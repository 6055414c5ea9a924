"""What `experiments.benchmark` and `experiments.parity` compare with: other libraries' programs."""

from importlib.util import find_spec

from cnn_jax.errors import InputError


def require(*names: str) -> None:
    """Raises an `InputError` that says how to install them, if one of these packages is not there."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} cannot be found: pip install 'cnn_jax[peers]', "
            "and then pip install --no-deps torchvision==0.28.0 timm==1.0.31 captum==0.9.0 grad-cam==1.5.7 ttach==0.0.3"
        )
