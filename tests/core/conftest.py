"""Fixtures that the tests of all packages share."""

import gc

import pytest
import toy_models


@pytest.fixture
def toy_denoiser():
    return toy_models.ToyDenoiser


@pytest.fixture
def finite_difference():
    return toy_models.finite_difference


def pytest_collection_finish(session):
    """Leave what is imported out of garbage collection: the core collects after every training, and half a
    second each time goes by among modules that are never freed.
    """
    gc.collect()
    gc.freeze()
