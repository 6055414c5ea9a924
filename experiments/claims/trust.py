"""Claims on what CNNs cost, and how far they can be trusted."""

import time
from functools import partial

import jax
import numpy as np

from cnn_jax import models
from cnn_jax.analysis import adversarial, attribution, cam, class_score, faithfulness
from cnn_jax.analysis.report_card import edges, random_map
from cnn_jax.reporting import comparisons as draw
from cnn_jax.statistics import interval
from experiments.claims import rules
from experiments.claims.lab import Claim, Lab, several


def cost(lab: Lab) -> Claim:
    """Where the parameters and the arithmetic of the textbook's network are, and of one for photographs."""
    textbooks = lab.create()
    networks = {
        "SimpleCNN": (textbooks, lab.digits.image_shape),
        "ResNet-50": (models.create("resnet50", num_classes=1000, stem="large"), (224, 224, 3)),
    }
    share, size = {}, {}
    for title, (network, shape) in networks.items():
        about = models.describe(network, shape)
        convolutions = [layer for layer in about.layers if layer.type == "Conv"]
        share[title] = (
            sum(layer.parameters for layer in convolutions) / about.parameters,
            sum(layer.flops for layer in convolutions) / about.flops,
        )
        size[title] = about
    images = lab.digits.preprocess(lab.digits.test["image"][:100])
    apply = jax.jit(textbooks.apply)
    variables, seconds = lab.simple_cnn[0], []
    apply(variables, images).block_until_ready()
    for _ in range(3 if lab.tiny else 20):
        begin = time.perf_counter()
        apply(variables, images).block_until_ready()
        seconds.append((time.perf_counter() - begin) / len(images))
    # A dense layer uses each weight once, in a product and a sum.
    reuse = {title: about.flops / (2 * about.parameters) for title, about in size.items()}
    small, large = share["SimpleCNN"], share["ResNet-50"]
    return Claim(
        said="CNNs are heavy to compute; convolutions hold few of the weights and do most of the work.",
        found=f"Of SimpleCNN's {size['SimpleCNN'].parameters:,} parameters {small[0]:.0%} are in convolutions, and "
        f"{small[1]:.0%} of its {size['SimpleCNN'].flops:,} FLOPs an image. ResNet-50 takes "
        f"{size['ResNet-50'].flops / 1e9:.1f} GFLOPs for a photograph, {large[1]:.1%} of them in convolutions, which "
        f"hold {large[0]:.0%} of its weights. Dense layers with as many weights would take 2 FLOPs a weight: SimpleCNN "
        f"takes {reuse['SimpleCNN']:.0f} times as many, ResNet-50 {reuse['ResNet-50']:.0f} times. On this machine an "
        f"image takes SimpleCNN {several(seconds, scale=1e6, unit=' µs')} (the interval is over {len(seconds)} timings "
        "of one program; the rest is counted, and has none).",
        number=f"{small[0]:.0%} of the weights, {small[1]:.0%} of the FLOPs (SimpleCNN); {large[0]:.0%}, "
        f"{large[1]:.1%} (ResNet-50); exact counts",
        tests=rules.cost({title: (*of, reuse[title]) for title, of in share.items()}),
        figure=draw.shares({title: dict(zip(("weights", "FLOPs"), of, strict=True)) for title, of in share.items()}),
        caption="The convolutions' share of weights and arithmetic.",
        numbers={f"convolutions_weights_{title}": of[0] for title, of in share.items()}
        | {f"convolutions_flops_{title}": of[1] for title, of in share.items()}
        | {f"flops_of_dense_{title}": times for title, times in reuse.items()}
        | {"microseconds_an_image": 1e6 * interval(seconds)[0]},
    )


def fooled(lab: Lab) -> Claim:
    """Accuracy under an attack by its strength, and under noise of the same size."""
    model, count = lab.create(), 50 if lab.tiny else 200
    images = np.asarray(lab.digits.test["image"][:count], np.float32) / 255
    labels = lab.test_labels[:count]
    mean, std = (np.reshape(of, (1, 1, 1, -1)).astype(np.float32) for of in (lab.digits.mean, lab.digits.std))
    epsilons = (0.1,) if lab.tiny else (0.05, 0.1, 0.2, 0.3)
    steps = 2 if lab.tiny else 20
    attacks = {"FGSM": adversarial.fgsm, "PGD": partial(adversarial.pgd, steps=steps)}
    found = {name: {0.0: [], **{e: [] for e in epsilons}} for name in (*attacks, "noise")}
    for seed, variables in zip(lab.seeds, lab.simple_cnn, strict=True):
        logits = lambda x, variables=variables: model.apply(variables, (x - mean) / std)  # noqa: E731
        for name, attack in attacks.items():
            robust = adversarial.robust_accuracy(
                jax.random.key(seed), logits, images, labels, epsilons=(0.0, *epsilons), attack=attack, batch_size=100
            )
            for epsilon, accuracy in zip(robust.epsilons, robust.accuracy, strict=True):
                found[name][float(epsilon)].append(float(accuracy))
        for epsilon in (0.0, *epsilons):
            signs = np.random.default_rng(seed).choice([-1, 1], images.shape).astype(np.float32)
            said = jax.jit(logits)((images + epsilon * signs).clip(0, 1)).argmax(-1)
            found["noise"][epsilon].append(float((said == labels).mean()))
    at = 0.1
    return Claim(
        said="CNNs are fooled by adversarial examples.",
        found=f"Each pixel of {len(images)} images may change by {at:g} of the range. By lot, each as much as it "
        f"may, {several(found['noise'][at])} are still named rightly; changed along the gradient in one step (FGSM) "
        f"{several(found['FGSM'][at])}, in {steps} steps (PGD) {several(found['PGD'][at])}; unchanged "
        f"{several(found['PGD'][0.0])}.",
        number=f"{several(found['PGD'][at])} under PGD, {several(found['noise'][at])} under noise, ε = {at:g}",
        tests=rules.fooled(found["PGD"][at], found["noise"][at]),
        figure=draw.lines(found, "largest change of a pixel", "accuracy, %", log=False),
        caption="Accuracy by how far each pixel may change.",
        numbers={f"{name}_{e:g}": interval(values)[0] for name, of in found.items() for e, values in of.items()},
    )  # fmt: skip


def black_box(lab: Lab) -> Claim:
    """Whether maps of what mattered are better than a random map and an edge detector, which know nothing."""
    model = lab.create()
    images, labels = lab.test(8 if lab.tiny else 48)
    key, empty = jax.random.key(0), np.broadcast_to(lab.black, lab.digits.image_shape)
    methods = {
        "random map": lambda score: random_map(key, images),
        "edges": lambda score: edges(images),
        "gradient": lambda score: np.abs(attribution.gradient(score, images)).sum(-1),
        "integrated gradients": lambda score: attribution.integrated_gradients(
            score, images, baseline=empty, steps=4 if lab.tiny else 32
        ).maps.sum(-1),
        "occlusion": lambda score: attribution.occlusion(score, images, window=5, stride=2, baseline=empty),
        "Grad-CAM": lambda score: cam.grad_cam(score, images, stage="conv2"),
    }
    found = {name: [] for name in methods}
    for variables in lab.simple_cnn:
        score = class_score(model, variables, labels)
        sure = class_score(model, variables, labels, probability=True)
        for name, method in methods.items():
            area = faithfulness.deletion(sure, images, method(score), baseline=empty).area
            found[name].append(float(np.mean(area)))
    bare = list(found)[:2]
    unit = {"scale": 1, "unit": "", "digits": 3}
    return Claim(
        said="CNNs are black boxes, hard to interpret.",
        found="Maps say which pixels counted. Pixels are covered in the order of each map, and the probability of the "
        "true class is watched: the lower its mean on the way, the better the map. A random map and an edge detector "
        "know nothing of the network: "
        + "; ".join(f"{name} {several(values, **unit)}" for name, values in found.items())
        + ". This tests whether maps find pixels that count, and not whether people understand a network by them.",
        number=", ".join(f"{name} {several(found[name], **unit)}" for name in ("integrated gradients", *bare)),
        tests=rules.black_box(found, bare),
        figure=draw.bars(found, "probability while covered (lower is better)", scale=1),
        caption="How well each map finds the pixels that count.",
        numbers={f"deletion_{name}": interval(values)[0] for name, values in found.items()},
    )


CLAIMS = {"cost": cost, "fooled": fooled, "black_box": black_box}
