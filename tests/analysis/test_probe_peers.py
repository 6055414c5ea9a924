"""Probes beside scikit-learn's ridge regression with its own choice by examples left out."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from cnn_jax import analysis

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("count", "dimensions"), [(20, 50), (80, 12)])
def test_ridge_regression(count, dimensions):
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 4).astype(np.int32)
    features = (rng.normal(size=(4, dimensions))[labels] + rng.normal(size=(count, dimensions))).astype(np.float32)
    probe = analysis.linear_probe(features, labels, num_classes=4)
    scaler = StandardScaler().fit(features)
    ridges = np.asarray(probe.strengths) * count * dimensions / min(count - 1, dimensions)
    theirs = RidgeCV(ridges, store_cv_results=True).fit(scaler.transform(features), np.eye(4)[labels])
    # Where almost all is fitted, float32 cancels to three digits.
    np.testing.assert_allclose(probe.errors, theirs.cv_results_.mean((0, 1)), rtol=3e-3)
    np.testing.assert_allclose(ridges[int(probe.best)], theirs.alpha_, rtol=1e-5)
    np.testing.assert_allclose(probe.scores(features), theirs.predict(scaler.transform(features)), atol=1e-4)
