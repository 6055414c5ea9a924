"""What has it learned, and what does it cost? Functions of pure functions and arrays."""

from cnn_jax.analysis import (
    adversarial,
    attribution,
    cam,
    cost,
    curvature,
    faithfulness,
    gradients,
    receptive,
    similarity,
    translation,
)
from cnn_jax.analysis.activations import Activity, Exciting, activity, capture, effective_rank, exciting
from cnn_jax.analysis.box_scores import box_score
from cnn_jax.analysis.probe import Probe, draw_balanced, embed, few_shot, linear_probe, probe_stages
from cnn_jax.analysis.report_card import Card, report_card
from cnn_jax.analysis.scores import Score, class_score, pixel_score
from cnn_jax.analysis.visualise import Visualised, starting_noise, unit_score, visualise

__all__ = [
    "Activity",
    "Card",
    "Exciting",
    "Probe",
    "Score",
    "Visualised",
    "activity",
    "adversarial",
    "attribution",
    "box_score",
    "cam",
    "capture",
    "class_score",
    "cost",
    "curvature",
    "draw_balanced",
    "effective_rank",
    "embed",
    "exciting",
    "faithfulness",
    "few_shot",
    "gradients",
    "linear_probe",
    "pixel_score",
    "probe_stages",
    "receptive",
    "report_card",
    "similarity",
    "starting_noise",
    "translation",
    "unit_score",
    "visualise",
]
