import logging
from types import SimpleNamespace

import torch

from smra_core.wan.pinned_memory import PinnedPieces

PIECES = [torch.zeros(8, dtype=torch.uint8) for _ in range(3)]


def fake_driver(monkeypatch, limit):
    """A driver that registers so many pieces at most."""
    held = []

    def register(address, size, flags):
        if len(held) == limit:
            return 2
        held.append(address)
        return 0

    driver = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=held.remove)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    return held


def test_pieces_are_registered_until_they_are_released(monkeypatch):
    held = fake_driver(monkeypatch, limit=3)
    pieces = PinnedPieces(torch.device("cuda"))
    for piece in PIECES:
        pieces.add(piece)
    assert held == [piece.data_ptr() for piece in PIECES]
    pieces.release()
    pieces.release()
    assert held == []


def test_what_the_system_refuses_is_told_once(monkeypatch, caplog):
    held = fake_driver(monkeypatch, limit=1)
    pieces = PinnedPieces(torch.device("cuda"))
    with caplog.at_level(logging.WARNING, "smrabooth"):
        for piece in PIECES:
            pieces.add(piece)
    assert len(caplog.records) == 1 and "be pinned" in caplog.text
    pieces.release()
    assert held == []


def test_nothing_is_registered_for_other_devices(monkeypatch):
    held = fake_driver(monkeypatch, limit=3)
    PinnedPieces(torch.device("cpu")).add(PIECES[0])
    assert held == []
