"""What others have published of the networks' size: parameters and multiply-adds, each with its source.

Nothing is copied from a library while this runs: the figures are written here, to be compared with what we count.
"""

from typing import NamedTuple


class Source(NamedTuple):
    """Who publishes, and how: figures are rounded to the units."""

    name: str
    multiply_adds: float  # unit, in 10⁹
    parameters: int  # unit
    norms: bool  # whether a norm is counted too, two for each number that it puts out


# `_ops` and `num_params` of the weights in torchvision.models. Images have the side that the weights' `transforms` cut
# them to; detectors see 800 × 800 pixels, and segmenters 520 × 520. Of convolutions and matrix products alone.
TORCHVISION = Source("torchvision 0.28.0", 0.001, 1, norms=False)
# `infer_gmacs` and `param_count` in results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv of
# huggingface/pytorch-image-models at aa4b5850, counted by fvcore.
TIMM = Source("timm, results/ at aa4b5850", 0.01, 10_000, norms=True)
# For CIFAR's images, baselines of works on pruning and robustness: README of lmbxmu/HRankPlus (Lin et al. 2020); Vu et
# al. 2020, "How Not to Give a FLOP", as its author's page tabulates it; README of Huang et al. 2022, "Revisiting
# Residual Networks for Adversarial Robustness" (arXiv:2212.11005), whose 5.20 is 0.8 % below the sum over the layers.
HRANK = Source("HRank, README", 0.00001, 10_000, norms=False)
VU = Source("Vu et al. 2020", 0.0001, 10_000, norms=False)
HUANG = Source("Huang et al. 2022", 0.05, 100_000, norms=False)


class Published(NamedTuple):
    """A network of `models.names()` as it is published."""

    side: int  # of the square images
    parameters: int
    multiply_adds: float  # in 10⁹, of one image
    source: Source = TORCHVISION
    classes: int = 1000


PUBLISHED = {
    "vgg11": Published(224, 132_863_336, 7.609),
    "vgg11_bn": Published(224, 132_868_840, 7.609),
    "vgg13": Published(224, 133_047_848, 11.308),
    "vgg13_bn": Published(224, 133_053_736, 11.308),
    "vgg16": Published(224, 138_357_544, 15.470),
    "vgg16_bn": Published(224, 138_365_992, 15.470),
    "vgg19": Published(224, 143_667_240, 19.632),
    "vgg19_bn": Published(224, 143_678_248, 19.632),
    "resnet18": Published(224, 11_689_512, 1.814),
    "resnet34": Published(224, 21_797_672, 3.664),
    "resnet50": Published(224, 25_557_032, 4.089),
    "resnet101": Published(224, 44_549_160, 7.801),
    "resnet152": Published(224, 60_192_808, 11.514),
    "resnet20": Published(32, 270_000, 0.0406, VU, 10),
    "resnet56": Published(32, 850_000, 0.12549, HRANK, 10),
    "resnet110": Published(32, 1_720_000, 0.25289, HRANK, 10),
    "wide_resnet28_10": Published(32, 36_500_000, 5.20, HUANG, 10),
    "resnext50_32x4d": Published(224, 25_028_904, 4.230),
    "wide_resnet50_2": Published(224, 68_883_240, 11.398),
    "mobilenet_v2": Published(224, 3_504_872, 0.301),
    "efficientnet_b0": Published(224, 5_288_548, 0.386),
    "efficientnet_b1": Published(240, 7_794_184, 0.687),
    "efficientnet_b2": Published(288, 9_109_994, 1.088),
    "efficientnet_b3": Published(300, 12_233_232, 1.827),
    "efficientnet_b4": Published(380, 19_341_616, 4.394),
    "efficientnet_b5": Published(456, 30_389_784, 10.266),
    "efficientnet_b6": Published(528, 43_040_704, 19.068),
    "efficientnet_b7": Published(600, 66_347_960, 37.746),
    "efficientnet_lite0": Published(224, 4_650_000, 0.40, TIMM),
    "efficientnet_lite1": Published(240, 5_420_000, 0.62, TIMM),
    "efficientnet_lite2": Published(260, 6_090_000, 0.89, TIMM),
    "efficientnet_lite3": Published(300, 8_200_000, 1.65, TIMM),
    "efficientnet_lite4": Published(380, 13_010_000, 4.04, TIMM),
    "convnext_tiny": Published(224, 28_589_128, 4.456),
    "convnext_small": Published(224, 50_223_688, 8.684),
    "convnext_base": Published(224, 88_591_464, 15.355),
    "convnext_large": Published(224, 197_767_336, 34.361),
    # Its backbone's norms are frozen in torchvision, and their 53,120 parameters not counted.
    "fcos_resnet50_fpn": Published(800, 32_269_600, 128.207, classes=91),
    "deeplabv3_resnet50": Published(520, 42_004_074, 178.722, classes=21),
    "deeplabv3_resnet101": Published(520, 60_996_202, 258.743, classes=21),
}
