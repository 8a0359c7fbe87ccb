"""The list of what the pack takes from ComfyUI, against this ComfyUI."""

import logging

import pytest
from random_wan import pack


@pytest.fixture
def versions():
    return pack("nodes.host.versions")


def test_this_comfyui_has_every_name_that_the_pack_needs(versions):
    assert versions.find_missing_symbols() == []


def test_versions_and_device_are_logged_in_one_line(versions, caplog):
    with caplog.at_level(logging.INFO, "smrabooth"):
        versions.log_versions()
    (record,) = caplog.records
    assert (
        record.getMessage().startswith("SMRABooth ") and versions.read_host_version() in record.getMessage()
    )


def test_a_name_that_the_log_line_itself_needs_is_told_and_not_raised(versions, caplog, monkeypatch):
    import comfy.model_management

    monkeypatch.delattr(comfy.model_management, "get_torch_device_name")
    with caplog.at_level(logging.INFO, "smrabooth"):
        versions.log_versions()
    line, warning = (record.getMessage() for record in caplog.records)
    assert line.endswith(", unknown device") and "model_management.get_torch_device_name" in warning


def test_a_name_and_a_module_that_are_gone_are_named_with_the_version_that_has_them(
    versions, caplog, monkeypatch
):
    import comfy.samplers

    monkeypatch.delattr(comfy.samplers, "calculate_sigmas")
    monkeypatch.setitem(versions.SYMBOLS, "comfy.gone", ("thing",))
    versions.log_versions()
    warning = caplog.records[-1].getMessage()
    assert "comfy.samplers.calculate_sigmas, comfy.gone" in warning and versions.OLDEST_HOST in warning
