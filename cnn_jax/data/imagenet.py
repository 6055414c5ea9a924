"""What networks that were trained on ImageNet call their 1,000 classes."""

from pathlib import Path

FILE = Path(__file__).parent / "embedded" / "imagenet_classes.txt"


def imagenet_classes() -> tuple[str, ...]:
    """The names of the classes of ImageNet's challenge of 2012, by number: "tench", "goldfish", …, no two alike.

    They are torchvision's (BSD-3), which those of timm's networks follow in order.
    """
    return tuple(FILE.read_text().splitlines())
